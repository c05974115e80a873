/*
 * test_space.c - pages of a file: each has its own bytes of memory and no more
 */
#include <check.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "kvd/mem/folio.h"
#include "kvd/mem/page.h"
#include "kvd/mem/space.h"
#include "tests/rig/rig_mem.h"
#include "tests/rig/switches.h"

#define KIB	1024ull
#define MIB	(KIB * KIB)
#define N_PAGES 12u

/* ---- the kernel's switches, put back at the end -------------------------------- */

static const size_t sizes[] = {
	16, 32, 64, 128, 256, 512, 1024, 2048
}; /* KiB */
#define N_SIZES (sizeof(sizes) / sizeof(sizes[0]))
static char before[N_SIZES][16];

static int open_switch(size_t kib, int flags)
{
	char path[96];

	(void)snprintf(path, sizeof(path),
		       "/sys/kernel/mm/transparent_hugepage/hugepages-%zukB/"
		       "shmem_enabled",
		       kib);
	return open(path, flags | O_CLOEXEC);
}

/* "always [advise] never": advise */
static int get_switch(size_t kib, char word[16])
{
	const int fd = open_switch(kib, O_RDONLY);
	char text[128] = "", *from, *to;
	ssize_t n = -1;

	if (fd >= 0) {
		n = read(fd, text, sizeof(text) - 1);
		(void)close(fd);
	}
	from = n > 0 ? strchr(text, '[') : NULL;
	to = from ? strchr(from, ']') : NULL;
	if (!to || to - from > 15)
		return -1;
	*to = '\0';
	strcpy(word, from + 1);
	return 0;
}

static int set_switch(size_t kib, const char *word)
{
	const int fd = open_switch(kib, O_WRONLY);
	ssize_t n = -1;

	if (fd >= 0) {
		n = write(fd, word, strlen(word));
		(void)close(fd);
	}
	return n > 0 ? 0 : -1;
}

static void remember(void)
{
	for (size_t i = 0; i < N_SIZES; i++)
		if (get_switch(sizes[i], before[i]))
			before[i][0] = '\0';
}

static void put_back(void)
{
	for (size_t i = 0; i < N_SIZES; i++)
		if (before[i][0])
			(void)set_switch(sizes[i], before[i]);
}

/* 0: cannot be had here, as in a container, or before Linux 6.11. */
static int all_switches(const char *word)
{
	int n = 0;

	for (size_t i = 0; i < N_SIZES; i++)
		n += !set_switch(sizes[i], word);
	return n == N_SIZES;
}

/* Bytes of the folio at p, which is resident; 0: this may not be looked at. */
static size_t folio_at(const char *p)
{
	const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	const int flags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	const uint64_t head = 1 << 15, tail = 1 << 16; /* KPF_COMPOUND_* */
	uint64_t e = 0, f = 0;
	size_t n = 0;

	if (map >= 0 && flags >= 0 &&
	    pread(map, &e, 8, (off_t)((uintptr_t)p / 4096 * 8)) == 8 &&
	    (e & ((1ull << 55) - 1))) {
		e &= (1ull << 55) - 1;
		while (pread(flags, &f, 8, (off_t)((e + n) * 8)) == 8 &&
		       (n ? f & tail : 1)) {
			n++;
			if (n == 1 && !(f & head))
				break;
		}
	}
	(void)close(map);
	(void)close(flags);
	return n * 4096;
}

/* ---- pages --------------------------------------------------------------------- */

static const struct {
	size_t page_bytes, folio;
} shapes[] = {
	{ 64 * KIB, 64 * KIB },	  { 256 * KIB, 256 * KIB },
	{ 192 * KIB, 64 * KIB },  { 1 * MIB, 1 * MIB },
	{ 768 * KIB, 256 * KIB }, { 2 * MIB, 2 * MIB },
	{ 6 * MIB, 2 * MIB },	  { 16 * KIB, 16 * KIB },
	{ 8 * KIB, 0 },
};

/* Mapped and dropped in any order: the file has what is mapped, which is zeros. */
static void any_order(struct space *s)
{
	const size_t bytes = space_page_bytes(s);
	const int64_t at = space_alloc(s, N_PAGES);
	uint8_t has[N_PAGES] = { 0 };
	uint64_t n = 0;
	uint32_t rng = 1;

	ck_assert_int_ge(at, 0);
	for (uint32_t k = 0; k < 6 * N_PAGES; k++) {
		uint32_t i, len = 1;
		char *p;

		rng = rng * 1664525 + 1013904223;
		i = (rng >> 16) % N_PAGES;
		while (len < 3 && i + len < N_PAGES && has[i + len] == has[i])
			len++;
		p = space_base(s) + ((uint64_t)at + i) * bytes;
		if (has[i]) {
			for (uint32_t j = 0; j < len; j++)
				ck_assert_int_eq(
					p[j * bytes + bytes / 8192 * 4096],
					(char)(i + j));
			ck_assert_int_eq(space_drop(s, (uint64_t)at + i, len),
					 0);
		} else {
			ck_assert_int_eq(space_map(s, (uint64_t)at + i, len),
					 0);
			for (size_t j = 0; j < len * bytes; j += 4096) {
				ck_assert_int_eq(p[j], 0);
				p[j] = (char)(i + j / bytes);
			}
		}
		n += has[i] ? -(uint64_t)len : len;
		memset(&has[i], !has[i], len);
		ck_assert_uint_eq(space_file_bytes(s), n * bytes);
	}
	ck_assert_int_eq(space_drop(s, (uint64_t)at, N_PAGES), 0);
	ck_assert_uint_eq(space_file_bytes(s), 0);
	ck_assert_int_eq(space_free(s, (uint64_t)at, N_PAGES), 0);
}

static void use(size_t page_bytes, int folios, size_t folio)
{
	const struct space_conf c = { .name = "test",
				      .page_bytes = page_bytes,
				      .folios = folios,
				      .numa_node = -1 };
	struct space *s;
	size_t got;

	ck_assert_int_eq(space_open(&s, &c), 0);
	ck_assert_str_eq(space_kind(s), "memfd");
	ck_assert_uint_eq(space_folio(s), folio);
	ck_assert_uint_eq(space_file_bytes(s), 0);
	ck_assert_int_eq(space_map(s, 5, 1), 0);
	got = folio_at(space_base(s) + 5 * page_bytes);
	ck_assert(!got || got == (folio ? folio : 4096));
	ck_assert_int_eq(space_drop(s, 5, 1), 0);
	any_order(s);
	space_close(s);
}

/* Larger ones are on, too: none reaches into a page beside. */
START_TEST(a_page_has_its_own_folios)
{
	if (!all_switches("advise")) {
		printf("test_space: folios of a memfd: skipped: they cannot be switched on here\n");
		return;
	}
	use(shapes[_i].page_bytes, 1, shapes[_i].folio);
	ck_assert(all_switches("always"));
	use(shapes[_i].page_bytes, 1, shapes[_i].folio);
}
END_TEST

START_TEST(without_folios_pages_are_small)
{
	use(shapes[_i].page_bytes, 0, 0);
	if (!rig_switches("never"))
		use(shapes[_i].page_bytes, 1, 0);
}
END_TEST

/* What kvctl pages tells. */
START_TEST(small_frames_are_counted)
{
	const int folios = all_switches("advise");
	struct rig_mem *r = rig_mem_open((struct rig_mem_options){
		.memory_bytes = MIB, .disk_bytes = 2 * MIB });
	struct pager_info i;
	struct range *a, *b;
	struct page_run run;

	ck_assert_int_eq(range_new(r->pager, 64 * KIB, 2, &a), 0);
	ck_assert_int_eq(range_new(r->pager, 8 * KIB, 2, &b), 0);
	run = (struct page_run){ a, 0, 2, PAGE_WRITE };
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	page_unpin(r->pager, &run, 1);
	run = (struct page_run){ b, 0, 2, PAGE_WRITE };
	ck_assert_int_eq(rig_mem_want(r, &run, 1), 0);
	page_unpin(r->pager, &run, 1);
	pager_info(r->pager, &i);
	ck_assert_uint_eq(i.file_bytes, 144 * KIB);
	ck_assert_uint_eq(i.small_bytes, folios ? 16 * KIB : 144 * KIB);
	range_free(a);
	range_free(b);
	rig_mem_settle(r);
	rig_mem_close(r);
}
END_TEST

START_TEST(what_is_off_is_switched_on)
{
	if (rig_switches("never")) {
		printf("test_space: switches: skipped: no mount namespace here\n");
		return;
	}
	ck_assert(!folio_is_on(256 * KIB));
	ck_assert_int_eq(folio_switch_on(), N_SIZES);
	for (size_t i = 0; i < N_SIZES; i++)
		ck_assert(rig_switch_is((unsigned int)sizes[i], "advise"));
}
END_TEST

START_TEST(what_is_on_stays_as_it_is)
{
	if (rig_switches("always"))
		return;
	ck_assert(folio_is_on(256 * KIB));
	ck_assert_int_eq(folio_switch_on(), N_SIZES);
	ck_assert(rig_switch_is(64, "[always]"));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("space");
	TCase *t = tcase_create("space");
	const int n = (int)(sizeof(shapes) / sizeof(shapes[0]));
	SRunner *sr;
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	remember();
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, a_page_has_its_own_folios, 0, n);
	tcase_add_loop_test(t, without_folios_pages_are_small, 0, n);
	tcase_add_test(t, small_frames_are_counted);
	tcase_add_test(t, what_is_off_is_switched_on);
	tcase_add_test(t, what_is_on_stays_as_it_is);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	put_back();
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
