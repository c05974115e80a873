/*
 * test_install.c - make install and uninstall: files and modes, and that what
 * was installed works: the library, the pages, the example, the service unit
 *
 * Installed twice: below DESTDIR, to look at; and with PREFIX alone, to run.
 */
#include <check.h>
#include <errno.h>
#include <limits.h>
#include <seccomp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"
#include "tests/rig/questions.h"

static char tmp[64]; /* TMP/dest, TMP/own */
static const char *san; /* "", "asan", ... */

/* Run; its exit status. What it printed goes to out, if not NULL. */
static int sh(char *out, size_t room, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static int sh(char *out, size_t room, const char *fmt, ...)
{
	char cmd[4096], line[4096];
	va_list ap;
	size_t n = 0;
	FILE *f;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	while (fgets(line, sizeof(line), f)) {
		const size_t len = strlen(line);

		if (out && n + len < room) {
			memcpy(out + n, line, len + 1);
			n += len;
		}
	}
	if (out && !n)
		out[0] = '\0';
	return pclose(f);
}

static int have(const char *program)
{
	return !sh(NULL, 0, "command -v %s >/dev/null", program);
}

/* Inside make check: no variables of the outer make. */
static void make(const char *target, const char *where)
{
	char out[8192];

	ck_assert_msg(!sh(out, sizeof(out),
			  "env -u MAKEFLAGS -u MAKELEVEL -u MFLAGS make -s %s "
			  "SAN=%s %s 2>&1",
			  target, san, where),
		      "%s", out);
}

static void install(void)
{
	char where[160];

	snprintf(tmp, sizeof(tmp), "/tmp/kvd-install-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(tmp));
	snprintf(where, sizeof(where), "DESTDIR=%s/dest PREFIX=/usr", tmp);
	make("install", where);
	snprintf(where, sizeof(where), "DESTDIR= PREFIX=%s/own", tmp);
	make("install", where);
}

static void clean(void)
{
	ck_assert_int_eq(sh(NULL, 0, "rm -rf %s", tmp), 0);
}

static const struct {
	const char *path;
	mode_t mode;
} files[] = {
	{ "sbin/kvd", 0755 },
	{ "bin/kvctl", 0755 },
	{ "bin/kvbench", 0755 },
	{ "include/kvclient.h", 0644 },
	{ "include/kv_abi.h", 0644 },
	{ "lib/libkvclient.a", 0644 },
	{ "lib/libkvclient.so.1", 0755 },
	{ "lib/libkvclient.so", 0 }, /* a link */
	{ "lib/pkgconfig/kvclient.pc", 0644 },
	{ "lib/systemd/system/kvd.service", 0644 },
	{ "lib/sysusers.d/kvd.conf", 0644 },
	{ "lib/tmpfiles.d/kvd.conf", 0644 },
	{ "share/man/man1/kvctl.1", 0644 },
	{ "share/man/man1/kvbench.1", 0644 },
	{ "share/man/man3/libkvclient.3", 0644 },
	{ "share/man/man5/kvd.conf.5", 0644 },
	{ "share/man/man8/kvd.8", 0644 },
	{ "share/doc/kvd/README.md", 0644 },
	{ "share/doc/kvd/LICENSE", 0644 },
	{ "share/doc/kvd/kvd.conf.example", 0644 },
	{ "share/doc/kvd/kvd-gpu.conf", 0644 },
	{ "share/doc/kvd/kvd-store.conf", 0644 },
};
#define N_FILES (sizeof(files) / sizeof(files[0]))

START_TEST(every_file_is_there_with_its_mode)
{
	char path[256], out[64];
	struct stat st;

	for (size_t i = 0; i < N_FILES; i++) {
		snprintf(path, sizeof(path), "%s/dest/usr/%s", tmp,
			 files[i].path);
		ck_assert_msg(!lstat(path, &st), "%s", path);
		if (!files[i].mode)
			ck_assert(S_ISLNK(st.st_mode) && !stat(path, &st));
		else
			ck_assert_msg((st.st_mode & 07777) == files[i].mode,
				      "%s: %o", path, st.st_mode & 07777);
		ck_assert_msg(st.st_size > 0, "%s is empty", path);
	}
	/* man pages of other modules may be added; nothing leaves DESTDIR/usr */
	sh(out, sizeof(out), "find %s/dest -mindepth 1 -maxdepth 1 | wc -l",
	   tmp);
	ck_assert_int_eq(atoi(out), 1);
	ck_assert_int_ne(sh(NULL, 0, "grep -rqF '@PREFIX@' %s/dest", tmp), 0);
	ck_assert_int_ne(sh(NULL, 0, "grep -rqF '@VERSION@' %s/dest", tmp), 0);
}
END_TEST

START_TEST(the_pkg_config_file_compiles_and_links_a_client)
{
	static const char *const kinds[] = { "--cflags --libs",
					     "--cflags --libs --static" };
	char out[4096];

	if (san[0] || !have("pkg-config")) {
		printf("pkg-config: skipped, %s\n",
		       san[0] ? "the library wants its sanitizer"
			      : "it is not installed");
		return;
	}
	for (int i = 0; i < 2; i++) {
		ck_assert_msg(
			!sh(out, sizeof(out),
			    "cc -std=c11 -Wall -Werror docs/example.c -o "
			    "%s/client $(PKG_CONFIG_PATH=%s/own/lib/pkgconfig "
			    "pkg-config %s kvclient) 2>&1",
			    tmp, tmp, kinds[i]),
			"%s", out);
		/* it runs with the installed library and finds no daemon */
		ck_assert_int_ne(sh(out, sizeof(out),
				    "LD_LIBRARY_PATH=%s/own/lib %s/client "
				    "%s/no.sock x 2>&1",
				    tmp, tmp, tmp),
				 0);
		ck_assert_msg(!strstr(out, "shared librar"), "%s", out);
	}
	ck_assert_int_eq(sh(out, sizeof(out),
			    "LD_LIBRARY_PATH=%s/own/lib ldd %s/client | "
			    "grep -c %s/own/lib/libkvclient.so.1",
			    tmp, tmp, tmp),
			 0);
}
END_TEST

START_TEST(man_pages_open_by_name)
{
	static const char *const pages[] = { "1 kvctl", "1 kvbench",
					     "3 libkvclient", "5 kvd.conf",
					     "8 kvd" };
	char out[4096];

	if (!have("man")) {
		printf("man pages: skipped, there is no man\n");
		return;
	}
	for (size_t i = 0; i < 5; i++)
		ck_assert_msg(!sh(out, sizeof(out),
				  "MANPATH=%s/own/share/man man -w %s 2>&1",
				  tmp, pages[i]),
			      "%s: %s", pages[i], out);
}
END_TEST

START_TEST(the_example_configuration_is_valid)
{
	char out[4096];

	/* all of it, but for the model that is not on this machine */
	ck_assert_msg(sh(out, sizeof(out),
			 "%s/own/sbin/kvd --check -c "
			 "%s/own/share/doc/kvd/kvd.conf.example 2>&1 | "
			 "grep -v 'small.gguf: No such file'",
			 tmp, tmp),
		      "%s", out);
	ck_assert_int_eq(
		sh(NULL, 0, "%s/own/sbin/kvd --version >%s/v", tmp, tmp), 0);
	ck_assert_int_eq(sh(NULL, 0, "%s/own/bin/kvctl --help >%s/v", tmp, tmp),
			 0);
	ck_assert_int_eq(
		sh(NULL, 0, "%s/own/bin/kvbench --help >%s/v", tmp, tmp), 0);
}
END_TEST

/* ---- the service --------------------------------------------------------- */

START_TEST(systemd_accepts_the_unit)
{
	char out[4096];

	if (!have("systemd-analyze")) {
		printf("unit: skipped, there is no systemd-analyze\n");
		return;
	}
	ck_assert_msg(!sh(out, sizeof(out),
			  "systemd-analyze verify --man=no "
			  "%s/own/lib/systemd/system/kvd.service 2>&1",
			  tmp),
		      "%s", out);
	ck_assert_msg(!out[0], "%s", out);
	/* and with the drop-ins, all lines of them */
	ck_assert_msg(
		!sh(out, sizeof(out),
		    "cd %s/own && u=lib/systemd/system && "
		    "mkdir $u/kvd.service.d && for d in gpu store; do "
		    "sed 's/^#\\([A-Z]\\)/\\1/' share/doc/kvd/kvd-$d.conf "
		    ">$u/kvd.service.d/$d.conf; done && "
		    "systemd-analyze verify --man=no $PWD/$u/kvd.service "
		    "2>&1; s=$?; rm -r $u/kvd.service.d; exit $s",
		    tmp),
		"%s", out);
	ck_assert_msg(!out[0], "%s", out);
	if (have("systemd-sysusers"))
		ck_assert_msg(!sh(out, sizeof(out),
				  "systemd-sysusers --dry-run "
				  "%s/own/lib/sysusers.d/kvd.conf 2>&1",
				  tmp),
			      "%s", out);
}
END_TEST

static void allow(scmp_filter_ctx ctx, const char *name)
{
	const int nr = seccomp_syscall_resolve_name(name);

	/* -EEXIST: named by two groups; -EDOM: not of this machine */
	if (nr != __NR_SCMP_ERROR)
		(void)seccomp_rule_add(ctx, SCMP_ACT_ALLOW, nr, 0);
}

/* A name or, with '@', all of a group as systemd says. */
static void allow_item(scmp_filter_ctx ctx, const char *item)
{
	char out[16384], *line, *at = out;

	if (item[0] != '@') {
		allow(ctx, item);
		return;
	}
	ck_assert_msg(!sh(out, sizeof(out), "systemd-analyze syscall-filter %s",
			  item),
		      "%s", item);
	(void)strsep(&at, "\n"); /* the group itself */
	while ((line = strsep(&at, "\n"))) {
		line += strspn(line, " ");
		if (*line && *line != '#')
			allow_item(ctx, line);
	}
}

/* The unit's SystemCallFilter=, over this process and all it starts. */
static void confine(void)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	char out[2048], *item, *at = out;

	ck_assert_ptr_nonnull(ctx);
	ck_assert_int_eq(
		sh(out, sizeof(out),
		   "grep -q ^SystemCallErrorNumber=EPERM %s/own/lib/systemd/"
		   "system/kvd.service && sed -n s/^SystemCallFilter=//p "
		   "%s/own/lib/systemd/system/kvd.service",
		   tmp, tmp),
		0);
	allow_item(ctx, "@default");
	while ((item = strsep(&at, " \n")))
		if (*item)
			allow_item(ctx, item);
	ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	ck_assert_int_eq(seccomp_load(ctx), 0);
	seccomp_release(ctx);
}

START_TEST(the_daemon_works_behind_the_unit_s_filter)
{
	struct rig_question q;
	struct rig_daemon *d;
	char conf[1024], text[128], *log;
	struct kvc *c;

	if (san[0] || !have("systemd-analyze")) {
		printf("the unit's filter: skipped, %s\n",
		       san[0] ? "sanitizers make calls of their own"
			      : "there is no systemd-analyze");
		return;
	}
	snprintf(conf, sizeof(conf), "%s/own/sbin/kvd", tmp);
	ck_assert_int_eq(setenv("KVD_BIN", conf, 1), 0);
	snprintf(conf, sizeof(conf),
		 "[model m]\npath = %s/models/rag-mini.gguf\n"
		 "[tenant a]\nuid = %u\nmemory = 3M\ndisk = 64M\n",
		 rig_data_dir(), getuid());
	rig_questions_load(&q, 1);
	confine();
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	c = rig_join(d->socket);
	for (int i = 0; i < 3; i++)
		ck_assert_int_gt(rig_ask(c, &q, text, NULL), 0);
	ck_assert_int_eq(kvc_persist(c), 0);
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	log = rig_daemon_log(d);
	ck_assert_ptr_null(strstr(log, " error "));
	ck_assert_ptr_null(strstr(log, " warn "));
	ck_assert_ptr_nonnull(strstr(log, "system calls refused"));
	ck_assert_ptr_null(strstr(log, "storage threads"));
	free(log);
	rig_daemon_free(d);
	rig_questions_free(&q, 1);
}
END_TEST

START_TEST(uninstall_leaves_nothing)
{
	char where[160], out[4096];

	snprintf(where, sizeof(where), "DESTDIR=%s/dest PREFIX=/usr", tmp);
	make("uninstall", where);
	ck_assert_int_eq(sh(out, sizeof(out), "find %s/dest ! -type d", tmp),
			 0);
	ck_assert_str_eq(out, "");
	ck_assert_int_eq(
		sh(out, sizeof(out), "find %s/dest -name '*kvd*'", tmp), 0);
	ck_assert_str_eq(out, "");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("install");
	TCase *t = tcase_create("install");
	const char *bin = rig_daemon_binary();
	SRunner *r;
	int n;

	if (!bin || access("Makefile", R_OK)) {
		printf("skipped: not at the top of a built tree\n");
		return 77;
	}
	san = strstr(bin, "/asan/")    ? "asan"
	      : strstr(bin, "/ubsan/") ? "ubsan"
	      : strstr(bin, "/tsan/")  ? "tsan"
				       : "";
	tcase_set_timeout(t, 300);
	tcase_add_unchecked_fixture(t, install, clean);
	tcase_add_test(t, every_file_is_there_with_its_mode);
	tcase_add_test(t, the_pkg_config_file_compiles_and_links_a_client);
	tcase_add_test(t, man_pages_open_by_name);
	tcase_add_test(t, the_example_configuration_is_valid);
	tcase_add_test(t, systemd_accepts_the_unit);
	tcase_add_test(t, the_daemon_works_behind_the_unit_s_filter);
	tcase_add_test(t, uninstall_leaves_nothing);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
