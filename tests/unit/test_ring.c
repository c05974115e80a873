/*
 * test_ring.c - both ends of a ring, and the daemon's channel
 */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "kvd/ipc/chan.h"

static struct kv_ring *new_ring(void)
{
	return aligned_alloc(64, sizeof(struct kv_ring));
}

START_TEST(indices_wrap)
{
	struct kv_ring *r = new_ring();
	struct kv_ring_end prod, cons;

	memset(r, 0, sizeof(*r));
	kv_ring_init(&prod, r, 4);
	kv_ring_init(&cons, r, 4);
	prod.mine = prod.other = cons.mine = r->head = r->tail = UINT32_MAX - 1;
	for (int i = 0; i < 20; i++) {
		ck_assert_int_eq(kv_ring_room(&prod, 4), 4);
		ck_assert_int_eq(kv_ring_ready(&cons), 0);
		(void)kv_ring_publish(&prod, 3);
		ck_assert_int_eq(kv_ring_room(&prod, 4), 1);
		ck_assert_int_eq(kv_ring_ready(&cons), 3);
		ck_assert_uint_eq(kv_ring_slot(&prod, 0), (cons.mine + 3) & 3);
		kv_ring_consume(&cons, 3);
	}
	free(r);
}
END_TEST

START_TEST(a_tail_beyond_the_ring_is_refused)
{
	struct kv_ring *r = new_ring();
	struct kv_ring_end cons;

	memset(r, 0, sizeof(*r));
	kv_ring_init(&cons, r, 8);
	r->tail = 8;
	ck_assert_int_eq(kv_ring_ready(&cons), 8);
	r->tail = 9;
	ck_assert_int_eq(kv_ring_ready(&cons), -EPROTO);
	r->tail = UINT32_MAX; /* behind the head */
	ck_assert_int_eq(kv_ring_ready(&cons), -EPROTO);
	free(r);
}
END_TEST

START_TEST(a_head_that_goes_back_or_ahead_is_refused)
{
	struct kv_ring *r = new_ring();
	struct kv_ring_end prod;

	memset(r, 0, sizeof(*r));
	kv_ring_init(&prod, r, 8);
	(void)kv_ring_publish(&prod, 8);
	r->head = 5;
	ck_assert_int_eq(kv_ring_room(&prod, 1), 5);
	r->head = 4;
	ck_assert_int_eq(kv_ring_room(&prod, 8), -EPROTO);
	r->head = 9;
	ck_assert_int_eq(kv_ring_room(&prod, 8), -EPROTO);
	r->head = 8;
	ck_assert_int_eq(kv_ring_room(&prod, 8), 8);
	free(r);
}
END_TEST

START_TEST(who_sleeps_is_rung_once)
{
	struct kv_ring *r = new_ring();
	struct kv_ring_end prod, cons;

	memset(r, 0, sizeof(*r));
	kv_ring_init(&prod, r, 8);
	kv_ring_init(&cons, r, 8);
	ck_assert_int_eq(kv_ring_publish(&prod, 1), 0);
	ck_assert_int_eq(kv_ring_arm(&cons), 1); /* stay awake */
	kv_ring_disarm(&cons);
	kv_ring_consume(&cons, 1);
	ck_assert_int_eq(kv_ring_arm(&cons), 0);
	ck_assert_int_eq(kv_ring_publish(&prod, 1), 1);
	ck_assert_int_eq(kv_ring_publish(&prod, 1), 0);
	free(r);
}
END_TEST

#define N_PASSED 200000u

static void *produce(void *arg)
{
	struct kv_ring *r = arg;
	uint64_t *slots = (uint64_t *)(r + 1);
	struct kv_ring_end e;

	kv_ring_init(&e, r, 16);
	for (uint64_t i = 0; i < N_PASSED;) {
		const int room = kv_ring_room(&e, 1);

		for (int k = 0; k < room && k < 5 && i + (uint64_t)k < N_PASSED;
		     k++)
			slots[kv_ring_slot(&e, (uint32_t)k)] = i + (uint64_t)k;
		if (room > 0) {
			const uint32_t n = (uint32_t)(room < 5 ? room : 5);
			const uint32_t left = (uint32_t)(N_PASSED - i);

			(void)kv_ring_publish(&e, n < left ? n : left);
			i += n < left ? n : left;
		} else {
			(void)sched_yield();
		}
	}
	return NULL;
}

START_TEST(two_threads_pass_everything_in_order)
{
	struct kv_ring *r = aligned_alloc(64, sizeof(*r) + 128);
	const uint64_t *slots = (const uint64_t *)(r + 1);
	struct kv_ring_end e;
	pthread_t t;

	memset(r, 0, sizeof(*r) + 128);
	kv_ring_init(&e, r, 16);
	ck_assert_int_eq(pthread_create(&t, NULL, produce, r), 0);
	for (uint64_t next = 0; next < N_PASSED;) {
		const int n = kv_ring_ready(&e);

		ck_assert_int_ge(n, 0);
		for (int i = 0; i < n; i++)
			ck_assert_uint_eq(slots[kv_ring_slot(&e, (uint32_t)i)],
					  next++);
		kv_ring_consume(&e, (uint32_t)n);
		if (!n)
			(void)sched_yield();
	}
	(void)pthread_join(t, NULL);
	free(r);
}
END_TEST

/* ---- the channel ------------------------------------------------------- */

static struct chan ch;
static int memfd;

static void open_chan(void)
{
	ck_assert_int_eq(chan_open(&ch, 8, 8, 65536, 0, &memfd), 0);
}

static void close_chan(void)
{
	chan_close(&ch);
	ck_assert_int_eq(close(memfd), 0);
}

START_TEST(the_memfd_cannot_change_its_size)
{
	ck_assert_int_eq(ftruncate(memfd, 0), -1);
	ck_assert_int_eq(ftruncate(memfd, 1 << 20), -1);
}
END_TEST

START_TEST(ranges_do_not_overflow)
{
	ck_assert_ptr_eq(chan_at(&ch, 0, 65536, 1), ch.arena);
	ck_assert_ptr_eq(chan_at(&ch, 65536, 0, 1), ch.arena + 65536);
	ck_assert_ptr_null(chan_at(&ch, 65536, 1, 1));
	ck_assert_ptr_null(chan_at(&ch, 0, 65537, 1));
	ck_assert_ptr_null(chan_at(&ch, UINT64_MAX, 2, 1));
	ck_assert_ptr_null(chan_at(&ch, 2, UINT64_MAX, 1));
	ck_assert_ptr_null(chan_at(&ch, UINT64_MAX - 63, 64, 64));
	ck_assert_ptr_null(chan_at(&ch, 4, 8, 8));
	ck_assert_int_eq(chan_read(&ch, 65530, &(uint64_t){ 0 }, 8), -EINVAL);
}
END_TEST

START_TEST(completions_have_room_or_wait)
{
	const struct kv_cqe e = { .user_data = 1 };

	for (uint32_t i = 0; i < 8; i++) {
		ck_assert_int_eq(chan_has_room(&ch, 7 - i), 1);
		ck_assert_int_eq(chan_has_room(&ch, 8 - i), 0);
		chan_post(&ch, &e);
		if (i % 2)
			chan_flush(&ch);
	}
	ck_assert_int_eq(chan_has_room(&ch, 0), 0);
	ch.cq.ring->head = 3; /* the client has read */
	ck_assert_int_eq(chan_has_room(&ch, 2), 1);
	ck_assert_int_eq(chan_has_room(&ch, 3), 0);
	ch.cq.ring->head = 9; /* and lies */
	ck_assert_int_eq(chan_has_room(&ch, 5), -EPROTO);
}
END_TEST

START_TEST(the_peer_cannot_move_our_indices)
{
	struct kv_sqe e;

	ch.sq.ring->tail = 2;
	ck_assert_int_eq(chan_pop(&ch, &e), 1);
	chan_taken(&ch);
	ck_assert_uint_eq(ch.sq.ring->head, 1);
	ch.sq.ring->head = 77;
	ck_assert_int_eq(chan_pop(&ch, &e), 1);
	ck_assert_int_eq(chan_pop(&ch, &e), 0);
	chan_taken(&ch);
	ck_assert_uint_eq(ch.sq.ring->head, 2);
	ch.sq.ring->tail = 1;
	ck_assert_int_eq(chan_pop(&ch, &e), -EPROTO);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ring");
	TCase *ring = tcase_create("ring"), *chan = tcase_create("chan");
	SRunner *sr = srunner_create(s);
	int failed;

	suite_add_tcase(s, ring);
	tcase_add_test(ring, indices_wrap);
	tcase_add_test(ring, a_tail_beyond_the_ring_is_refused);
	tcase_add_test(ring, a_head_that_goes_back_or_ahead_is_refused);
	tcase_add_test(ring, who_sleeps_is_rung_once);
	tcase_add_test(ring, two_threads_pass_everything_in_order);
	suite_add_tcase(s, chan);
	tcase_add_checked_fixture(chan, open_chan, close_chan);
	tcase_add_test(chan, the_memfd_cannot_change_its_size);
	tcase_add_test(chan, ranges_do_not_overflow);
	tcase_add_test(chan, completions_have_room_or_wait);
	tcase_add_test(chan, the_peer_cannot_move_our_indices);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
