/*
 * test_gds.c - cuFile found, missing or failing; what is read is checked on the device
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "io/crc.h"
#include "kernels/gpu.h"
#include "kvd/mem/gds.h"
#include "kvd/mem/page.h"
#include "tests/rig/rig_cuda.h"
#include "tests/rig/rig_dev.h"

#define N (3u * 65536u + 4096u)

static struct cuda_api *api;
static struct fake_ctl ctl;
static cuda_handle ctx;
static char library[512], why[256];
static struct gds *g;
static int fd;
static unsigned char *bytes;

static void setup(void)
{
	const char *path = rig_cuda_path();

	snprintf(library, sizeof(library), "%.*s/libfakecufile.so",
		 (int)(strrchr(path, '/') - path), path);
	api = rig_cuda_open(&ctl, 8 << 20, 65536);
	ck_assert_int_eq(api->ctx_retain(&ctx, 0), 0);
	ck_assert_int_eq(api->ctx_set(ctx), 0);
	fd = memfd_create("store", MFD_CLOEXEC);
	bytes = malloc(N);
	for (uint32_t i = 0; i < N; i++)
		bytes[i] = (unsigned char)(i * 2654435761u >> 13);
	ck_assert_int_eq(pwrite(fd, bytes, N, 8192), N);
	unsetenv("FAKE_CUFILE");
	g = NULL;
}

static void teardown(void)
{
	gds_close(g);
	free(bytes);
	ck_assert_int_eq(close(fd), 0);
	ck_assert_int_eq(api->ctx_release(0), 0);
	rig_cuda_close(api, &ctl);
}

static int open_gds(const char *path)
{
	const struct gds_conf c = {
		.api = api, .ctx = ctx, .library = path, .image = "any"
	};

	return gds_open(&g, &c, why, sizeof(why));
}

/* Read all; 0: and the CRC is that of the bytes, which are there. */
static int read_all(struct gds_file *f)
{
	uint32_t crc;
	cuda_ptr at;
	int ret;

	ck_assert_int_eq(api->alloc(&at, N), 0);
	ret = gds_read(f, 8192, at, N, &crc);
	if (!ret && crc != kio_crc32c(0, bytes, N))
		ret = -EBADMSG;
	if (!ret)
		ck_assert_int_eq(memcmp((void *)at, bytes, N), 0);
	ck_assert_int_eq(api->free(at), 0);
	return ret;
}

START_TEST(bytes_and_their_crc)
{
	struct gds_file *f;

	ck_assert_int_eq(open_gds(library), 0);
	ck_assert_str_eq(why, "found");
	ck_assert_int_eq(gds_file_open(&f, g, fd), 0);
	ck_assert_int_eq(read_all(f), 0);
	setenv("FAKE_CUFILE", "short", 1); /* the rest comes after */
	ck_assert_int_eq(read_all(f), -EIO); /* down to nothing */
	setenv("FAKE_CUFILE", "flip", 1);
	ck_assert_int_eq(read_all(f), -EBADMSG);
	setenv("FAKE_CUFILE", "read", 1);
	ck_assert_int_eq(read_all(f), -EIO);
	unsetenv("FAKE_CUFILE");
	ck_assert_int_eq(read_all(f), 0);
	gds_file_close(f);
}
END_TEST

START_TEST(not_there_or_not_willing)
{
	struct gds_file *f;

	ck_assert_int_eq(open_gds("/nonexistent/libcufile.so"), -ENOENT);
	if (access("/proc/driver/nvidia-fs/version", R_OK)) {
		ck_assert_int_eq(open_gds(NULL), -ENOENT);
		ck_assert_ptr_nonnull(strstr(why, "nvidia-fs"));
	}
	ck_assert_int_eq(open_gds(rig_cuda_path()), -ENOSYS);
	ck_assert_str_eq(why, "it has no cuFileDriverOpen");
	setenv("FAKE_CUFILE", "driver", 1);
	ck_assert_int_eq(open_gds(library), -ENODEV);
	setenv("FAKE_CUFILE", "handle", 1);
	ck_assert_int_eq(open_gds(library), 0);
	ck_assert_int_eq(gds_file_open(&f, g, fd), -ENOTSUP);
}
END_TEST

/* Every call of the driver, once and for good. */
START_TEST(calls_that_fail)
{
	const int errs[] = { CUDA_OUT_OF_MEMORY, CUDA_LAUNCH_FAILED };
	uint64_t met = 1;

	for (uint64_t nth = 1; met; nth++) {
		struct gds_file *f;
		uint32_t crc;
		cuda_ptr at;
		int ret;

		ck_assert_int_eq(api->alloc(&at, N), 0);
		ctl.arm(_i ? FAKE_FOREVER : FAKE_ONCE, "cu", nth, errs[_i]);
		ret = open_gds(library);
		if (!ret) {
			ck_assert_int_eq(gds_file_open(&f, g, fd), 0);
			ret = gds_read(f, 8192, at, N, &crc);
			if (!ret)
				ck_assert_uint_eq(crc, kio_crc32c(0, bytes, N));
			gds_file_close(f);
			gds_close(g);
			g = NULL;
		}
		met = ctl.count() >= nth;
		ctl.arm(FAKE_OFF, "", 0, 0);
		ck_assert(met || !ret);
		ctl.reset(8 << 20, 65536); /* what could not be freed */
		ck_assert_int_eq(api->ctx_retain(&ctx, 0), 0);
	}
}
END_TEST

START_TEST(joined_crcs)
{
	struct kio_crc_zeros z;

	for (uint32_t n = 0; n < 70000; n += 1 + n * 3) {
		kio_crc32c_zeros(&z, n);
		ck_assert_uint_eq(
			kio_crc32c_join(&z, kio_crc32c(0, bytes, 1000),
					kio_crc32c(0, bytes + 1000, n)),
			kio_crc32c(0, bytes, 1000 + n));
	}
}
END_TEST

/* ---- in a pager --------------------------------------------------------------- */

#define PAGE RIG_DEV_FRAME

static struct rig_dev *r;

/* Want page i: 0 and its bytes are seed's, or the error. */
static int want(struct range *range, uint32_t i, uint32_t flags, uint32_t seed)
{
	struct page_run run = { range, i, 1, flags };
	uint32_t *p = (uint32_t *)(range_addr(range) + i * PAGE);
	struct pager *pager = range_pager(range);
	int ret;

	ck_assert_int_eq(pager_reserve(pager, PAGE), 0);
	ret = rig_dev_want(r, pager, &run, 1);
	for (uint32_t k = 0; k < PAGE / 4 && !ret; k++) {
		if (flags)
			p[k] = seed * 2654435761u + k;
		else if (p[k] != seed * 2654435761u + k)
			ret = -EILSEQ;
	}
	if (!ret || ret == -EILSEQ)
		page_unpin(pager, &run, 1);
	pager_unreserve(pager, PAGE);
	return ret;
}

/* A bit of one page changes on disk, of which there is no copy elsewhere. */
static void damage(const struct range *range)
{
	const int disk = kio_store_fd(stores_disk(r->stores, 0));
	char buf[4096] __attribute__((aligned(4096)));
	uint32_t i = 0;

	while (!range_lower_bytes(range, i, 1))
		i++;
	ck_assert_int_eq(pread(disk, buf, 4096, range->pages[i].slot * 4096),
			 4096);
	buf[100] ^= 4;
	ck_assert_int_eq(pwrite(disk, buf, 4096, range->pages[i].slot * 4096),
			 4096);
}

/* 32 pages over 8 frames and a pool of 8, all read again; how many failed. */
static uint32_t go_round(const char *trouble, uint64_t *direct)
{
	struct device_info d;
	struct range *range;
	uint32_t n_bad = 0;

	r = rig_dev_open((struct rig_dev_options){ .memory_bytes = 8 * PAGE,
						   .host_bytes = 8 * PAGE,
						   .disk_bytes = 64 * PAGE,
						   .direct = library });
	ck_assert_int_eq(range_new(r->pagers[0], PAGE, 32, &range), 0);
	for (uint32_t k = 0; k < 32; k++)
		ck_assert_int_eq(want(range, k, PAGE_WRITE, k), 0);
	rig_dev_settle(r);
	if (trouble && !strcmp(trouble, "damage"))
		damage(range);
	else if (trouble)
		setenv("FAKE_CUFILE", trouble, 1);
	for (uint32_t k = 0; k < 32; k++) {
		const int ret = want(range, k, 0, k);

		ck_assert(!ret || ret == -EBADMSG);
		n_bad += ret != 0;
	}
	rig_dev_settle(r);
	rig_dev_check(r);
	device_info(r->device, &d);
	*direct = d.direct_bytes;
	unsetenv("FAKE_CUFILE");
	range_free(range);
	rig_dev_close(r);
	return n_bad;
}

static void find_library(void)
{
	const char *path = rig_cuda_path();

	snprintf(library, sizeof(library), "%.*s/libfakecufile.so",
		 (int)(strrchr(path, '/') - path), path);
}

START_TEST(pages_come_past_the_host)
{
	uint64_t direct;

	find_library();
	ck_assert_uint_eq(go_round(NULL, &direct), 0);
	if (!direct) {
		printf("pages_come_past_the_host: skipped: no O_DIRECT here, "
		       "or built without nvcc\n");
		return;
	}
	ck_assert_uint_ge(direct, 8 * PAGE);
	/* one that fails is done again, and the rest goes the other way */
	ck_assert_uint_eq(go_round("read", &direct), 0);
	ck_assert_uint_eq(direct, 0);
	/* what is wrong is found, not used, and read the other way: there it is right */
	ck_assert_uint_eq(go_round("flip", &direct), 0);
	ck_assert_uint_eq(direct, 0);
	/* where it is wrong too the page is lost, and nobody else to blame */
	ck_assert_uint_eq(go_round("damage", &direct), 1);
	ck_assert_uint_ge(direct, 8 * PAGE);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gds");
	TCase *t = tcase_create("all");
	SRunner *sr = srunner_create(s);
	int n;

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, bytes_and_their_crc);
	tcase_add_test(t, not_there_or_not_willing);
	tcase_add_loop_test(t, calls_that_fail, 0, 2);
	tcase_add_test(t, joined_crcs);
	suite_add_tcase(s, t);
	t = tcase_create("pager");
	tcase_set_timeout(t, 60);
	tcase_add_test(t, pages_come_past_the_host);
	suite_add_tcase(s, t);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
