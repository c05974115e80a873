/*
 * test_kvfsck.c - kvfsck finds what was damaged, changes nothing, and repairs
 *
 * The program as built, on stores made here. $KVFSCK_BIN, else beside the tests.
 */
#include <check.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "io/crc.h"
#include "io/store_priv.h"
#include "tests/rig/rig_store.h"

#define SMALL (34ull << 20)

static struct rig_store r;
static struct rig_record x[8];
static char bin[PATH_MAX];
static char text[65536];
static json_t *report;

static void find_program(void)
{
	const char *env = getenv("KVFSCK_BIN");
	char self[PATH_MAX] = "";

	if (env) {
		(void)snprintf(bin, sizeof(bin), "%s", env);
		return;
	}
	ck_assert_int_gt(readlink("/proc/self/exe", self, sizeof(self) - 1), 0);
	ck_assert_int_lt(
		snprintf(bin, sizeof(bin), "%s/../kvfsck", dirname(self)),
		(int)sizeof(bin));
}

/* Its exit status; what it printed is in text. */
static int fsck(const char *args)
{
	char cmd[2 * PATH_MAX];
	size_t n;
	FILE *p;
	int status;

	ck_assert_int_lt(
		snprintf(cmd, sizeof(cmd), "%s %s %s 2>&1", bin, args, r.path),
		(int)sizeof(cmd));
	p = popen(cmd, "r");
	ck_assert_ptr_nonnull(p);
	n = fread(text, 1, sizeof(text) - 1, p);
	text[n] = 0;
	status = pclose(p);
	ck_assert_msg(WIFEXITED(status), "%s: %d", cmd, status);
	return WEXITSTATUS(status);
}

static int fsck_json(const char *args)
{
	char all[64];
	int rc;

	(void)snprintf(all, sizeof(all), "--json %s", args);
	rc = fsck(all);
	json_decref(report);
	report = json_loads(text, 0, NULL);
	ck_assert_msg(report, "not JSON: %s", text);
	ck_assert_int_eq(json_integer_value(json_object_get(report, "exit")),
			 rc);
	return rc;
}

static json_int_t value(const char *key)
{
	const json_t *v = json_object_get(report, key);

	ck_assert_msg(json_is_integer(v), "no %s in %s", key, text);
	return json_integer_value(v);
}

static uint32_t file_crc(void)
{
	char *all = malloc(SMALL);
	uint32_t crc;

	ck_assert_ptr_nonnull(all);
	rig_store_peek(&r, 0, all, SMALL);
	crc = kio_crc32c(0, all, SMALL);
	free(all);
	return crc;
}

static void damage(uint64_t off)
{
	char c;

	rig_store_peek(&r, off, &c, 1);
	c = (char)~c;
	rig_store_poke(&r, off, &c, 1);
}

/* Six records, one deleted; two bad slots, one of a record that is there. */
static void make(void)
{
	find_program();
	rig_store_init(&r, KIO_ENGINE_THREADS, "/var/tmp");
	r.verdict = KIO_RECORD_KEEP;
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), 0);
	for (uint32_t i = 0; i < 6; i++)
		rig_store_add(&r, &x[i], i + 1, 2, 50);
	kio_store_del(r.store, x[5].handle);
	kio_store_quarantine(r.store, x[5].places[0].block, RIG_PAGE);
	kio_store_release(r.store, x[5].places[1].block, RIG_PAGE);
	kio_store_quarantine(r.store, x[4].places[1].block, RIG_PAGE);
	rig_store_close(&r);
}

static void fini(void)
{
	json_decref(report);
	report = NULL;
	rig_store_fini(&r);
}

START_TEST(a_store_is_explained)
{
	make();
	ck_assert_int_eq(fsck(""), 0);
	ck_assert_ptr_nonnull(strstr(text, "records: 5, with 10 pages"));
	ck_assert_ptr_nonnull(strstr(text, "2 bad slots"));
	ck_assert_ptr_nonnull(strstr(text, "\nclean\n"));
	ck_assert_int_eq(fsck_json("--verify --records"), 0);
	ck_assert_int_eq(value("records"), 5);
	ck_assert_int_eq(value("pages_read"), 10);
	ck_assert_int_eq(value("pages_wrong"), 0);
	ck_assert_int_eq(value("bad_slots"), 2);
	ck_assert_uint_eq(json_array_size(json_object_get(report, "list")), 5);
	fini();
}
END_TEST

/* A script that looks at the exit code does not take silence for clean. */
START_TEST(what_cannot_be_printed_is_not_clean)
{
	make();
	ck_assert_int_eq(fsck(">/dev/full"), 4);
	ck_assert_int_eq(fsck("--json >/dev/full"), 4);
	damage(100);
	ck_assert_int_eq(fsck(">/dev/full"), 1);
	fini();
}
END_TEST

START_TEST(looking_changes_nothing)
{
	uint32_t before;

	make();
	damage(100);
	damage(x[1].places[0].block * 4096);
	before = file_crc();
	ck_assert_int_eq(fsck("--verify"), 1);
	ck_assert_uint_eq(file_crc(), before);
	fini();
}
END_TEST

START_TEST(wrong_pages_are_found_and_their_records_go)
{
	make();
	damage(x[1].places[0].block * 4096);
	damage(x[3].places[1].block * 4096 + 8191);
	ck_assert_int_eq(fsck(""), 0); /* nobody looked */
	ck_assert_int_eq(fsck_json("--verify"), 1);
	ck_assert_int_eq(value("pages_wrong"), 2);
	ck_assert_uint_eq(json_array_size(json_object_get(report, "problems")),
			  2);
	ck_assert_int_eq(fsck_json("--verify --repair"), 1);
	ck_assert_int_eq(value("records_deleted"), 2);
	ck_assert_int_eq(fsck_json("--verify"), 0);
	ck_assert_int_eq(value("records"), 3);
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), 0);
	ck_assert_ptr_null(rig_store_find(&r, 2));
	ck_assert_ptr_null(rig_store_find(&r, 4));
	ck_assert_uint_eq(r.n_found, 3);
	fini();
}
END_TEST

START_TEST(superblocks_are_told_and_repaired)
{
	make();
	damage((uint64_t)_i * 4096 + 200);
	ck_assert_int_eq(fsck(""), 1);
	ck_assert_ptr_nonnull(strstr(text, _i ? "superblock 1 is damaged"
					      : "superblock 0 is damaged"));
	ck_assert_int_eq(fsck("--repair"), 1);
	ck_assert_int_eq(fsck(""), 0);
	damage(200);
	damage(4096 + 200);
	ck_assert_int_eq(fsck("--repair"), 1);
	ck_assert_ptr_nonnull(strstr(text, "no superblock can be used"));
	damage(200);
	damage(4096 + 200);
	ck_assert_int_eq(fsck(""), 0);
	fini();
}
END_TEST

START_TEST(a_damaged_log_is_told)
{
	make();
	damage(INDEX_OFF + 2 * 4096 + 60);
	ck_assert_int_eq(fsck_json(""), 1);
	ck_assert_int_eq(value("records"), 2);
	ck_assert_int_ge(value("lost_frames"), 3);
	ck_assert_int_eq(fsck("--repair"), 1);
	ck_assert_int_eq(fsck_json("--verify"), 0);
	ck_assert_int_eq(value("records"), 2);
	fini();
}
END_TEST

START_TEST(a_cut_end_is_fine)
{
	make();
	ck_assert_int_eq(fsck_json(""), 0);
	damage(INDEX_OFF + (uint64_t)(value("frames") - 1) * 4096 + 60);
	ck_assert_int_eq(fsck_json(""), 0);
	ck_assert_int_gt(value("torn_bytes"), 0);
	fini();
}
END_TEST

/* A frame that says what no daemon would: the last one, written again. */
START_TEST(records_that_cannot_be_are_found)
{
	union {
		struct frame f;
		char bytes[4096];
	} u;
	struct rec_put *p = (struct rec_put *)(&u.f + 1);
	struct kio_place *places = (struct kio_place *)(p + 1);

	make();
	/* a second frame whose record names the first one's slots, or none */
	rig_store_peek(&r, INDEX_OFF + 4096, &u, sizeof(u));
	places[0].block = _i ? x[0].places[0].block : 1;
	u.f.crc = 0;
	u.f.crc = kio_crc32c(0, &u, sizeof(u.f) + u.f.n_bytes);
	rig_store_poke(&r, INDEX_OFF + 4096, &u, sizeof(u));
	ck_assert_int_eq(fsck_json(""), 1);
	/* and all behind it hangs on its checksum */
	ck_assert_int_eq(value("records"), 2);
	ck_assert_ptr_nonnull(strstr(text, "outside the zones"));
	ck_assert_int_eq(fsck("--repair"), 1);
	ck_assert_int_eq(fsck_json(""), 0);
	ck_assert_int_eq(value("records"), 1);
	fini();
}
END_TEST

/* Noted while its record was on the way: in one frame bad slots stand before puts. */
START_TEST(a_bad_slot_may_be_noted_before_its_record)
{
	make();
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), 0);
	ck_assert_int_eq(rig_store_take(&r, &x[6], 7, RIG_PAGE, 2, 50), 0);
	ck_assert_int_eq(rig_store_write(&r, &x[6]), 0);
	kio_store_quarantine(r.store, x[6].places[1].block, RIG_PAGE);
	rig_store_add(&r, &x[7], 8, 1, 50); /* so it is noted */
	ck_assert_int_eq(rig_store_commit(&r, &x[6]), 0);
	rig_store_close(&r);
	ck_assert_int_eq(fsck_json("--verify"), 0);
	ck_assert_int_eq(value("records"), 7);
	ck_assert_int_eq(value("bad_slots"), 3);
	fini();
}
END_TEST

/* The power went between the two. */
START_TEST(superblocks_may_differ)
{
	struct sb old;

	make();
	rig_store_peek(&r, (uint64_t)_i * 4096, &old, sizeof(old));
	ck_assert_int_eq(rig_store_open(&r, 2 * SMALL, 0), 0); /* grows */
	rig_store_close(&r);
	rig_store_poke(&r, (uint64_t)_i * 4096, &old, sizeof(old));
	ck_assert_int_eq(fsck_json("--verify"), 0);
	ck_assert_int_eq(value("records"), 5);
	ck_assert_int_eq(value("bytes"), 2 * SMALL);
	ck_assert_int_eq(fsck(""), 0);
	ck_assert_ptr_nonnull(strstr(text, "which is fine"));
	fini();
}
END_TEST

static void use_faulty(void)
{
	strcat(bin, "-faulty");
	if (access(bin, X_OK))
		strcpy(strstr(bin, "/../kvfsck"), "/kvfsck-faulty");
}

/* A store without O_DIRECT, and so many lines that they are written before the end. */
START_TEST(who_closes_the_output_does_not_get_it_in_the_store)
{
	char args[PATH_MAX + 64];
	struct stat st;
	off_t size;

	make();
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), 0);
	for (uint32_t i = 0; i < 100; i++)
		rig_store_add(&r, &x[6], 100 + i, 1, 50);
	rig_store_close(&r);
	use_faulty();
	ck_assert_int_eq(stat(r.path, &st), 0);
	size = st.st_size;
	ck_assert_int_eq(setenv("KVD_FAULT_START", "once sys.open 1 22", 1), 0);
	(void)snprintf(args, sizeof(args), "--repair --records %s >&- #",
		       r.path);
	ck_assert_int_eq(fsck(args), 0);
	ck_assert_int_eq(unsetenv("KVD_FAULT_START"), 0);
	ck_assert_int_eq(stat(r.path, &st), 0);
	ck_assert_int_eq(st.st_size, size);
	fini();
}
END_TEST

/* With a program of which calls fail: the first read of the index, and all after it. */
START_TEST(an_index_that_cannot_be_read_is_explained)
{
	uint32_t before;

	make();
	use_faulty();
	before = file_crc();
	ck_assert_int_eq(setenv("KVD_FAULT_START", "once sys.pread 3 5", 1), 0);
	ck_assert_int_eq(fsck(""), 0); /* block by block then */
	ck_assert_ptr_nonnull(strstr(text, "records: 5"));
	ck_assert_int_eq(setenv("KVD_FAULT_START", "forever sys.pread 3 5", 1),
			 0);
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(fsck(i ? "--repair" : ""), 4);
		ck_assert_ptr_nonnull(
			strstr(text, "index cannot be read at byte 32768"));
		ck_assert_ptr_nonnull(strstr(text, "ddrescue"));
	}
	ck_assert_int_eq(unsetenv("KVD_FAULT_START"), 0);
	ck_assert_uint_eq(file_crc(), before);
	fini();
}
END_TEST

START_TEST(what_cannot_be_read)
{
	char zeros[4096] = "something else";

	make();
	ck_assert_int_eq(rig_store_open(&r, SMALL, 0), 0);
	ck_assert_int_eq(fsck(""), 4);
	ck_assert_ptr_nonnull(strstr(text, "in use"));
	rig_store_close(&r);
	ck_assert_int_eq(fsck("--nonsense"), 2);
	ck_assert_int_eq(fsck("another"), 2);
	ck_assert_int_eq(fsck("--help"), 0);
	ck_assert_int_eq(truncate(r.path, 100), 0);
	ck_assert_int_eq(fsck(""), 4);
	ck_assert_int_eq(truncate(r.path, 0), 0);
	ck_assert_int_eq(truncate(r.path, 4 << 20), 0);
	ck_assert_int_eq(fsck("--repair"), 4);
	rig_store_poke(&r, 0, zeros, sizeof(zeros));
	ck_assert_int_eq(fsck("--repair"), 4);
	ck_assert_ptr_nonnull(strstr(text, "not a page store"));
	ck_assert_int_eq(unlink(r.path), 0);
	ck_assert_int_eq(fsck(""), 4);
	ck_assert_int_eq(access(r.path, F_OK), -1);
	ck_assert_int_eq(mkfifo(r.path, 0600), 0); /* nobody writes to it */
	ck_assert_int_eq(fsck(""), 4);
	ck_assert_int_eq(fsck("--repair"), 4);
	ck_assert_ptr_nonnull(strstr(text, "neither a file nor a disk"));
	ck_assert_int_eq(unlink(r.path), 0);
	ck_assert_int_eq(mkdir(r.path, 0700), 0);
	ck_assert_int_eq(fsck(""), 4);
	ck_assert_int_eq(rmdir(r.path), 0);
	fini();
}
END_TEST

START_TEST(a_cut_file_is_told)
{
	make();
	ck_assert_int_eq(truncate(r.path, (off_t)x[4].places[0].block * 4096),
			 0);
	ck_assert_int_eq(fsck_json(""), 1);
	ck_assert_ptr_nonnull(strstr(text, "behind the end"));
	ck_assert_int_eq(fsck("--repair"), 1);
	ck_assert_int_eq(fsck_json("--verify"), 0);
	ck_assert_int_eq(value("records"), 4);
	ck_assert_int_eq(truncate(r.path, 1 << 20), 0);
	ck_assert_int_eq(fsck(""), 1);
	ck_assert_ptr_nonnull(strstr(text, "cut inside its index"));
	fini();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("kvfsck");
	TCase *tc = tcase_create("kvfsck");
	SRunner *sr;
	int n;

	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, a_store_is_explained);
	tcase_add_test(tc, what_cannot_be_printed_is_not_clean);
	tcase_add_test(tc, looking_changes_nothing);
	tcase_add_test(tc, wrong_pages_are_found_and_their_records_go);
	tcase_add_loop_test(tc, superblocks_are_told_and_repaired, 0, 2);
	tcase_add_test(tc, a_damaged_log_is_told);
	tcase_add_test(tc, a_cut_end_is_fine);
	tcase_add_loop_test(tc, records_that_cannot_be_are_found, 0, 2);
	tcase_add_test(tc, a_bad_slot_may_be_noted_before_its_record);
	tcase_add_loop_test(tc, superblocks_may_differ, 0, 2);
	tcase_add_test(tc, who_closes_the_output_does_not_get_it_in_the_store);
	tcase_add_test(tc, an_index_that_cannot_be_read_is_explained);
	tcase_add_test(tc, what_cannot_be_read);
	tcase_add_test(tc, a_cut_file_is_told);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
