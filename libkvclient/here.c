/*
 * here.c - the SIGBUS handler that resolves faults in the faulting thread; see here.h
 *
 *  (1) The handler makes no call that is not async-signal-safe, takes no lock and waits
 *      for the daemon only in the door.
 *  (2) It reads the table inside a section; whoever takes an entry out waits until
 *      all sections that may have seen it are over (two counters, as in sleepable RCU:
 *      McKenney 2006). Sections do not wait for anything.
 *  (3) A page is mapped between hold and release, after its state was read: states.c of
 *      the daemon has the argument.
 *  (4) A door's page that cannot be had raises SIGBUS inside the handler, which then leaves
 *      the touch; the signal goes to whoever had it before.
 *  (5) A child of fork() begins with an empty table: none of the entries is its own, and its
 *      own maps may come to lie at the same addresses.
 */
#include "libkvclient/here.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "libkvclient/kv_abi.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define SMALL	    4096u
#define MAP_AT_ONCE (128u << 10) /* 32 page table entries: some 5 us */
#define TRIES	    100 /* the client's own memory map is being changed */

struct table {
	uint32_t n;
	struct kvc_here e[]; /* by address */
};

static pthread_mutex_t lock =
	PTHREAD_MUTEX_INITIALIZER; /* of those who write */
static struct table *table; /* (atomic) */
static uint32_t epoch, n_inside[2]; /* (atomic) */
static struct sigaction before; /* (I) after kvc_here_begin() */

/* The byte of a door that this thread touches, and where it goes on if that fails. */
struct touch {
	const char *at;
	sigjmp_buf failed;
};
static __thread struct touch *touching
	__attribute__((tls_model("initial-exec")));

/* ---- sections ------------------------------------------------------------ */

static uint32_t section_begin(void)
{
	const uint32_t i = __atomic_load_n(&epoch, __ATOMIC_SEQ_CST) & 1;

	__atomic_fetch_add(&n_inside[i], 1, __ATOMIC_SEQ_CST);
	return i;
}

static void section_end(uint32_t i)
{
	__atomic_fetch_sub(&n_inside[i], 1, __ATOMIC_SEQ_CST);
}

/* All sections that began before are over. Twice: one may have read the epoch before it
 * was changed and counted itself only afterwards. */
static void wait_sections(void)
{
	for (int k = 0; k < 2; k++) {
		const uint32_t i =
			__atomic_fetch_add(&epoch, 1, __ATOMIC_SEQ_CST) & 1;

		while (__atomic_load_n(&n_inside[i], __ATOMIC_SEQ_CST))
			sched_yield();
	}
}

/* ---- the table ------------------------------------------------------------ */

/* Index of the first that ends behind addr. */
static uint32_t find(const struct table *t, const char *addr)
{
	uint32_t lo = 0, hi = t ? t->n : 0;

	while (lo < hi) {
		const uint32_t mid = (lo + hi) / 2;

		if (t->e[mid].addr + t->e[mid].n_bytes <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static void replace(struct table *t)
{
	struct table *old = __atomic_exchange_n(&table, t, __ATOMIC_SEQ_CST);

	wait_sections();
	free(old);
}

int kvc_here_add(const struct kvc_here *h)
{
	const struct table *old;
	struct table *t;
	uint32_t n, i;

	(void)pthread_mutex_lock(&lock); /* cannot fail: plain mutex */
	old = table;
	n = old ? old->n : 0;
	t = malloc(sizeof(*t) + (n + 1) * sizeof(t->e[0]));
	if (t) {
		i = find(old, h->addr);
		t->n = n + 1;
		if (n)
			memcpy(t->e, old->e, i * sizeof(t->e[0]));
		t->e[i] = *h;
		if (n)
			memcpy(t->e + i + 1, old->e + i,
			       (n - i) * sizeof(t->e[0]));
		replace(t);
	}
	(void)pthread_mutex_unlock(&lock);
	return t ? 0 : -ENOMEM;
}

void kvc_here_remove(const char *addr)
{
	struct table *old, *t;
	uint32_t i;

	(void)pthread_mutex_lock(&lock);
	old = table;
	i = find(old, addr);
	if (old && i < old->n && old->e[i].addr == addr) {
		t = malloc(sizeof(*t) + old->n * sizeof(t->e[0]));
		if (t) {
			t->n = old->n - 1;
			memcpy(t->e, old->e, i * sizeof(t->e[0]));
			memcpy(t->e + i, old->e + i + 1,
			       (t->n - i) * sizeof(t->e[0]));
			replace(t);
		} else { /* it stays, and has nothing any more */
			old->e[i].page_bytes = 0;
			wait_sections();
		}
	}
	(void)pthread_mutex_unlock(&lock);
}

/* ---- a fault ------------------------------------------------------------------ */

/* A word to say it with, or NULL: all are in use. */
static uint64_t *hold(const struct kvc_here *h, uint64_t what)
{
	for (uint32_t i = 0; i < KV_MAP_HOLDS; i++) {
		uint64_t none = 0;

		if (__atomic_compare_exchange_n(&h->holds[i], &none, what, 0,
						__ATOMIC_SEQ_CST,
						__ATOMIC_RELAXED))
			return &h->holds[i];
	}
	return NULL;
}

/* Page table entries for n bytes at addr: 1 when they, or the first of them, are there. */
static int map_bytes(const struct kvc_here *h, char *addr, uint64_t n)
{
	struct uffdio_continue c = { .range = { (uint64_t)(uintptr_t)addr, n },
				     .mode = UFFDIO_CONTINUE_MODE_DONTWAKE };

	for (int i = 0; i < TRIES; i++) {
		c.mapped = 0;
		if (!ioctl(h->uffd, UFFDIO_CONTINUE, &c) || c.mapped > 0)
			return 1;
		if (errno == EEXIST && n == SMALL)
			return 1; /* another thread did it */
		if (errno == EEXIST)
			n = c.range.len = SMALL;
		else if (errno != EAGAIN)
			return 0;
	}
	return 0;
}

/* 1: addr is mapped now. */
static int map_here(const struct kvc_here *h, char *addr)
{
	const uint64_t off = (uint64_t)(addr - h->addr) / SMALL * SMALL;
	uint64_t page, end, *held;
	int ret = 0;

	if (!h->page_bytes)
		return 0;
	page = off / h->page_bytes;
	end = (page + 1) * h->page_bytes;
	if (end > h->n_bytes)
		end = h->n_bytes;
	held = hold(h, h->hold + page);
	if (!held)
		return 0;
	if (__atomic_load_n(&h->states[page], __ATOMIC_SEQ_CST) == 1)
		ret = map_bytes(h, h->addr + off,
				end - off < MAP_AT_ONCE ? end - off
							: MAP_AT_ONCE);
	__atomic_store_n(held, 0, __ATOMIC_RELEASE);
	return ret;
}

/* 1: it is mapped; 0: ours, and not there: *door; -1: not ours. */
static int try_here(char *addr, char **door)
{
	const uint32_t s = section_begin();
	const struct table *t = __atomic_load_n(&table, __ATOMIC_SEQ_CST);
	const uint32_t i = find(t, addr);
	int ret = -1;

	if (t && i < t->n && t->e[i].addr <= addr) {
		*door = t->e[i].door + (addr - t->e[i].addr);
		ret = map_here(&t->e[i], addr);
	}
	section_end(s);
	return ret;
}

/* To whoever had the signal before. */
static void pass_on(int sig, siginfo_t *si, void *context)
{
	if (before.sa_flags & SA_SIGINFO)
		before.sa_sigaction(sig, si, context);
	else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
		before.sa_handler(sig);
	else /* the same touch again ends the process */
		(void)signal(SIGBUS, SIG_DFL);
}

/*
 * Wait for the daemon to bring the page in: 0, -1 it cannot be had. Other signals' handlers
 * may fault meanwhile, and come here too. SIGBUS is let through, whoever called us (a
 * handler that was installed later, a sanitizer): blocked, it would end the process.
 */
static int touch_door(const char *door)
{
	struct touch t = { .at = door }, *const outer = touching;
	sigset_t bus, mask;
	int ret = -1;

	(void)sigemptyset(&bus);
	(void)sigaddset(&bus, SIGBUS);
	(void)pthread_sigmask(SIG_UNBLOCK, &bus, &mask);
	if (!sigsetjmp(t.failed, 0)) {
		__atomic_store_n(&touching, &t, __ATOMIC_RELEASE);
		(void)*(const volatile char *)door;
		ret = 0;
	}
	touching = outer;
	(void)pthread_sigmask(SIG_SETMASK, &mask, NULL);
	return ret;
}

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	const int err = errno;
	char *addr = si->si_addr, *door = NULL;
	int ret;

	if (touching &&
	    (uintptr_t)addr / SMALL == (uintptr_t)touching->at / SMALL)
		siglongjmp(touching->failed, 1);
	ret = try_here(addr, &door);
	if (!ret && !touch_door(door))
		(void)try_here(addr, &door); /* if not, it faults again */
	else if (ret <= 0)
		pass_on(sig, si, context);
	errno = err;
}

/* ---- the beginning -------------------------------------------------------------- */

static int begun;

static void before_fork(void)
{
	(void)pthread_mutex_lock(&lock); /* cannot fail: plain mutex */
}

static void in_parent(void)
{
	(void)pthread_mutex_unlock(&lock);
}

/* (5). Sections of threads that are not here will not end. */
static void in_child(void)
{
	free(table);
	table = NULL;
	n_inside[0] = n_inside[1] = 0;
	(void)pthread_mutex_unlock(&lock);
}

static void begin(void)
{
	struct sigaction a = { .sa_sigaction = on_sigbus,
			       .sa_flags = SA_SIGINFO | SA_NODEFER |
					   SA_ONSTACK };

	(void)sigemptyset(&a.sa_mask); /* cannot fail */
	begun = -pthread_atfork(before_fork, in_parent, in_child);
	if (!begun)
		begun = sigaction(SIGBUS, &a, &before) ? -errno : 0;
}

int kvc_here_begin(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	(void)pthread_once(&once, begin); /* cannot fail */
	return begun;
}

int kvc_here_uffd(int *out)
{
	struct uffdio_api api = { .api = UFFD_API,
				  .features = UFFD_FEATURE_SIGBUS |
					      UFFD_FEATURE_MINOR_SHMEM };
	const int fd = (int)syscall(
		SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		return errno == EMFILE || errno == ENFILE || errno == ENOMEM
			       ? -errno
			       : -ENOTSUP;
	if (ioctl(fd, UFFDIO_API, &api)) {
		(void)close(fd); /* nothing is registered */
		return -ENOTSUP;
	}
	*out = fd;
	return 0;
}
