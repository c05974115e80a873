/*
 * test_stat.c - the registry, the histogram's buckets, the rendered text
 */
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/stat.h"

static char *render(void)
{
	char *text;
	size_t len;

	ck_assert_int_eq(stat_render(&text, &len), 0);
	ck_assert_uint_eq(strlen(text), len);
	return text;
}

static int occurs(const char *text, const char *part)
{
	int n = 0;

	for (; (text = strstr(text, part)); text++)
		n++;
	return n;
}

#define ck_text(text, part) \
	ck_assert_msg(occurs(text, part) == 1, "%s\nin\n%s", part, text)

START_TEST(same_name_and_value_is_the_same)
{
	struct stat *a =
		stat_get(STAT_COUNTER, "kvd_a_total", "A.", "tenant", "x", 0);

	ck_assert_ptr_eq(a, stat_get(STAT_COUNTER, "kvd_a_total", "A.",
				     "tenant", "x", 0));
	ck_assert_ptr_ne(a, stat_get(STAT_COUNTER, "kvd_a_total", "A.",
				     "tenant", "y", 0));
	ck_assert_ptr_ne(
		a, stat_get(STAT_COUNTER, "kvd_a_total", "A.", NULL, NULL, 0));
	stat_add(a, 5);
	stat_sub(a, 2);
	ck_assert_uint_eq(stat_read(a), 3);
	stat_set(a, 9);
	ck_assert_uint_eq(stat_read(a), 9);
}
END_TEST

/* A name registered in between does not part its lines. */
START_TEST(help_and_type_once_for_each_name)
{
	char *text;

	stat_set(stat_get(STAT_COUNTER, "kvd_a_total", "All a.", "tenant", "x",
			  0),
		 1);
	stat_set(stat_get(STAT_GAUGE, "kvd_b", "Now b.", NULL, NULL, 0), 7);
	stat_set(stat_get(STAT_COUNTER, "kvd_a_total", "All a.", "tenant", "y",
			  0),
		 2);
	text = render();
	ck_text(text, "# HELP kvd_a_total All a.\n"
		      "# TYPE kvd_a_total counter\n"
		      "kvd_a_total{tenant=\"x\"} 1\n"
		      "kvd_a_total{tenant=\"y\"} 2\n");
	ck_text(text, "# HELP kvd_b Now b.\n# TYPE kvd_b gauge\nkvd_b 7\n");
	free(text);
}
END_TEST

START_TEST(label_values_are_escaped)
{
	char *text;

	stat_get(STAT_GAUGE, "kvd_c", "C.", "tenant", "a\"b\\c\nd", 0);
	text = render();
	ck_text(text, "kvd_c{tenant=\"a\\\"b\\\\c\\nd\"} 0\n");
	free(text);
}
END_TEST

START_TEST(long_values_are_cut)
{
	char value[200];

	memset(value, 'v', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	ck_assert_uint_eq(
		strlen(stat_get(STAT_GAUGE, "kvd_d", "D.", "tenant", value, 0)
			       ->value),
		63);
}
END_TEST

START_TEST(buckets_are_cumulative)
{
	struct stat *h =
		stat_get(STAT_HISTOGRAM, "kvd_h", "H.", "tenant", "x", 0.5);
	char *text;

	stat_observe(h, 0);
	stat_observe(h, 1); /* le 1 */
	stat_observe(h, 2); /* le 2 */
	stat_observe(h, 3); /* le 4 */
	stat_observe(h, 4);
	stat_observe(h, 5); /* le 8 */
	stat_observe(h, UINT64_MAX >> 1); /* beyond all */
	text = render();
	ck_text(text, "# TYPE kvd_h histogram\n"
		      "kvd_h_bucket{tenant=\"x\",le=\"0.5\"} 2\n"
		      "kvd_h_bucket{tenant=\"x\",le=\"1\"} 3\n"
		      "kvd_h_bucket{tenant=\"x\",le=\"2\"} 5\n"
		      "kvd_h_bucket{tenant=\"x\",le=\"4\"} 6\n");
	ck_text(text, "kvd_h_bucket{tenant=\"x\",le=\"+Inf\"} 7\n"
		      "kvd_h_sum{tenant=\"x\"} ");
	ck_text(text, "kvd_h_count{tenant=\"x\"} 7\n");
	free(text);
}
END_TEST

START_TEST(quantiles_are_within_a_bucket)
{
	struct stat *h =
		stat_get(STAT_HISTOGRAM, "kvd_q", "Q.", NULL, NULL, 1e-9);

	ck_assert_uint_eq(stat_quantile(h, 0.5), 0);
	for (uint64_t i = 1; i <= 1000; i++)
		stat_observe(h, i * 1000);
	ck_assert_uint_ge(stat_quantile(h, 0.5), 250000);
	ck_assert_uint_le(stat_quantile(h, 0.5), 1000000);
	ck_assert_uint_ge(stat_quantile(h, 0.99), 524288);
	ck_assert_uint_le(stat_quantile(h, 1), 1 << 20);
	ck_assert_uint_le(stat_quantile(h, 0), 1024);
	ck_assert(stat_quantile(h, 0.1) <= stat_quantile(h, 0.9));
}
END_TEST

static void *add_many(void *arg)
{
	char name[8] = "t";

	for (int i = 0; i < 20000; i++) {
		name[1] = (char)('a' + i % 8);
		stat_add(stat_get(STAT_COUNTER, "kvd_m_total", "M.", "tenant",
				  name, 0),
			 1);
		stat_observe(arg, 3);
	}
	return NULL;
}

static void sum_m(const struct stat *s, void *arg)
{
	if (!strcmp(s->name, "kvd_m_total"))
		*(uint64_t *)arg += stat_read(s);
}

START_TEST(threads_lose_nothing)
{
	struct stat *h = stat_get(STAT_HISTOGRAM, "kvd_n", "N.", NULL, NULL, 1);
	pthread_t t[4];
	uint64_t sum = 0;
	char *text;

	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, add_many, h), 0);
	for (int i = 0; i < 20; i++)
		free(render());
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	stat_each(sum_m, &sum);
	ck_assert_uint_eq(sum, 80000);
	text = render();
	ck_text(text, "kvd_n_sum 240000\nkvd_n_count 80000\n");
	free(text);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("stat");
	TCase *tc = tcase_create("stat");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, same_name_and_value_is_the_same);
	tcase_add_test(tc, help_and_type_once_for_each_name);
	tcase_add_test(tc, label_values_are_escaped);
	tcase_add_test(tc, long_values_are_cut);
	tcase_add_test(tc, buckets_are_cumulative);
	tcase_add_test(tc, quantiles_are_within_a_bucket);
	tcase_add_test(tc, threads_lose_nothing);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
