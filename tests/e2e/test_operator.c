/*
 * test_operator.c - what the log tells the operator: which line of the configuration a
 * daemon that does not start is about, and why a session ended
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "libkvclient/kvclient.h"
#include "tests/rig/daemon.h"

static struct rig_daemon *d; /* its folder */

static void setup(void)
{
	d = rig_daemon_start(NULL);
	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
}

static void teardown(void)
{
	rig_daemon_free(d);
}

/* Start with that behind [kvd]; the last line of the log. */
static const char *start(const char *more)
{
	static char last[1024];
	FILE *f = fopen(d->conf, "w");
	char *log, *at;

	ck_assert_ptr_nonnull(f);
	fprintf(f, "[kvd]\n%s[tenant t]\nuid = %u\nmemory = 16M\n", more,
		getuid());
	fclose(f);
	ck_assert_int_eq(rig_daemon_restart(d), -1);
	log = rig_daemon_log(d);
	at = log + strlen(log);
	while (at > log && (at[-1] != '\n' || !*at))
		at--;
	snprintf(last, sizeof(last), "%s", at);
	free(log);
	return last;
}

/* DIR in it is the folder. */
static void in_folder(const char *text, char *out, size_t room)
{
	const char *at = strstr(text, "DIR");

	snprintf(out, room, "%.*s%s%s", (int)(at - text), text, d->dir, at + 3);
}

static const struct {
	const char *conf, *says; /* behind "start: " */
} table[] = {
	{ "[model m]\npath = DIR/none.gguf\n",
	  "model m: DIR/none.gguf: No such file or directory\n" },
	{ "[model m]\npath = DIR\n", "model m: DIR: not a regular file\n" },
	{ "[model m]\npath = DIR/kvd.conf\n",
	  "model m: DIR/kvd.conf: header, byte 0: " },
	{ "state_dir = DIR/none\n",
	  "store DIR/none/kvd.store: No such file or directory\n" },
	{ "[store a]\npath = DIR/none/a\nsize = 64M\n",
	  "store DIR/none/a: No such file or directory\n" },
	{ "[store a]\npath = DIR/a\nsize = 1M\n",
	  "store DIR/a: too small for a store, or size is missing\n" },
	{ "metrics = unix:DIR/none/m\n",
	  "metrics unix:DIR/none/m: No such file or directory\n" },
	{ "metrics = unix:DIR/kvd.conf\n",
	  "metrics unix:DIR/kvd.conf: File exists\n" },
};

START_TEST(who_does_not_start_says_what_it_is_about)
{
	char conf[256], says[256], all[512];
	const char *line, *at;

	in_folder(table[_i].conf, conf, sizeof(conf));
	in_folder(table[_i].says, says, sizeof(says));
	/* keys of [kvd], or sections, which come last */
	snprintf(all, sizeof(all), "socket = %s\n%s%s%s%s", d->socket,
		 strstr(conf, "state_dir") ? "" : "state_dir = ",
		 strstr(conf, "state_dir") ? "" : d->dir,
		 strstr(conf, "state_dir") ? "" : "/state\n", conf);
	line = start(all);
	at = strstr(line, "error kvd: start: ");
	ck_assert_msg(at != NULL, "%s", line);
	at += strlen("error kvd: start: ");
	ck_assert_msg(!strncmp(at, says, strlen(says)), "%ssays %s", all, line);
}
END_TEST

/* A program that listens where clients are to connect, in its own way. */
START_TEST(a_socket_of_another_program_stays)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char more[256];
	const char *line;

	strcpy(addr.sun_path, d->socket);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(listen(fd, 1), 0);
	snprintf(more, sizeof(more), "socket = %s\nstate_dir = %s/state\n",
		 d->socket, d->dir);
	line = start(more);
	ck_assert_msg(strstr(line, "kvd.sock: Address already in use\n") !=
			      NULL,
		      "%s", line);
	ck_assert_int_eq(access(d->socket, F_OK), 0);
	close(fd);
}
END_TEST

/* A supervisor that closes all descriptors: the log goes nowhere, not into a store. */
START_TEST(closed_descriptors_are_nobody_s)
{
	char name[64], path[64];
	struct kvc *c = NULL;

	d->pid = fork();
	if (!d->pid) {
		for (int fd = 0; fd < 3; fd++)
			close(fd);
		execl(rig_daemon_binary(), "kvd", "-c", d->conf, (char *)NULL);
		_exit(127);
	}
	ck_assert_int_gt(d->pid, 0);
	for (int i = 0; i < 1000 && !c; i++)
		if (kvc_open(&c, &(struct kvc_options){ .socket = d->socket }))
			(void)usleep(10000);
	ck_assert_ptr_nonnull(c);
	for (int fd = 0; fd < 3; fd++) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/%d/fd/%d", d->pid, fd);
		n = readlink(path, name, sizeof(name) - 1);
		ck_assert_int_gt(n, 0);
		name[n] = '\0';
		ck_assert_str_eq(name, "/dev/null");
	}
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
}
END_TEST

/* What happens every day does not read like an error. */
START_TEST(the_log_says_who_ended_a_session)
{
	struct kvc *c[2];
	char *log;

	ck_assert_int_eq(rig_daemon_restart(d), 0);
	for (int i = 0; i < 2; i++)
		ck_assert_int_eq(
			kvc_open(&c[i],
				 &(struct kvc_options){ .socket = d->socket }),
			0);
	kvc_close(c[0]);
	for (int i = 0; i < 1000; i++) { /* it is noticed */
		log = rig_daemon_log(d);
		if (strstr(log, " ends: "))
			break;
		free(log);
		(void)usleep(10000);
	}
	ck_assert_ptr_nonnull(strstr(log, " ends: closed by the client\n"));
	free(log);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	log = rig_daemon_log(d);
	ck_assert_ptr_nonnull(strstr(log, " ends: the daemon stops\n"));
	free(log);
	kvc_close(c[1]);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("operator");
	TCase *t = tcase_create("operator");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_loop_test(t, who_does_not_start_says_what_it_is_about, 0,
			    sizeof(table) / sizeof(table[0]));
	tcase_add_test(t, a_socket_of_another_program_stays);
	tcase_add_test(t, closed_descriptors_are_nobody_s);
	tcase_add_test(t, the_log_says_who_ended_a_session);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
