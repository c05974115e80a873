/*
 * test_map_hostile.c - clients that lie about their maps, and a kernel that fails
 *
 * What a session may send by its socket is a userfaultfd of its own, once; whatever
 * else it sends, and whatever it says of its addresses, ends that session at most.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libkvclient/kvc.h"
#include "tests/rig/daemon.h"
#include "tests/rig/fault_ctl.h"
#include "tests/rig/questions.h"
#include "tests/rig/rig_map.h"

#define CONF "[tenant a]\nuid = %u\nmemory = 1M\ndisk = 48M\n%s"

static struct rig_daemon *start(const char *more)
{
	char conf[512];
	struct rig_daemon *d;

	snprintf(conf, sizeof(conf), CONF, getuid(), more);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	return d;
}

static void stop(struct rig_daemon *d, struct kvc *c)
{
	kvc_close(c);
	ck_assert_int_eq(rig_daemon_stop(d), 0);
	rig_daemon_free(d);
}

/* ---- what goes by the socket -------------------------------------------------- */

static int uffd_new(int flags, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ioctl(fd, UFFDIO_API, &api), 0);
	return fd;
}

/* n_fds times fd with a message; fd stays ours. */
static void send_fd(struct kvc *c, const struct kv_ctl *ctl, size_t n, int fd,
		    size_t n_fds)
{
	union {
		char buf[CMSG_SPACE(8 * sizeof(int))];
		struct cmsghdr align;
	} u = { { 0 } };
	struct iovec iov = { (void *)(uintptr_t)ctl, n };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n_fds) {
		struct cmsghdr *m;

		msg.msg_control = u.buf;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
		m = CMSG_FIRSTHDR(&msg);
		m->cmsg_level = SOL_SOCKET;
		m->cmsg_type = SCM_RIGHTS;
		m->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
		for (size_t i = 0; i < n_fds; i++)
			memcpy(CMSG_DATA(m) + i * sizeof(int), &fd,
			       sizeof(int));
	}
	ck_assert_int_eq(sendmsg(c->sock, &msg, MSG_NOSIGNAL), (ssize_t)n);
}

static const struct kv_ctl faults = { .magic = KV_MAGIC,
				      .kind = KV_CTL_FAULTS };

static uint32_t n_fds_of(pid_t pid)
{
	char cmd[64];
	unsigned int n = 0;
	FILE *f;

	snprintf(cmd, sizeof(cmd), "ls /proc/%d/fd | wc -l", pid);
	f = popen(cmd, "r");
	ck_assert_int_eq(fscanf(f, "%u", &n), 1);
	pclose(f);
	return n;
}

/* The session ends with -EPROTO, and the daemon keeps none of it. */
static void ends(struct kvc *c)
{
	int closed = 0;

	for (int i = 0; i < 300 && !closed; i++) {
		closed = (int)__atomic_load_n(&c->cq.ring->closed,
					      __ATOMIC_ACQUIRE);
		usleep(10000);
	}
	ck_assert_int_eq(closed, -EPROTO);
	kvc_close(c);
}

START_TEST(other_messages_end_the_session)
{
	struct rig_daemon *d = start("");
	struct kvc *o = rig_join(d->socket), *c;
	struct kv_ctl bad[6];
	const int fd = uffd_new(O_NONBLOCK, 0);
	const uint32_t n_before = n_fds_of(d->pid);

	for (int i = 0; i < 6; i++)
		bad[i] = faults;
	bad[0].magic ^= 1;
	bad[1].kind = KV_CTL_SPACE;
	bad[2].kind = 77;
	bad[3].id = 1;
	bad[4]._pad = 1;
	bad[5].addr = 4096;
	for (int i = 0; i < 6; i++) {
		c = rig_join(d->socket);
		send_fd(c, &bad[i], sizeof(bad[i]), fd, 1);
		ends(c);
	}
	for (int i = 0; i < 4; i++) {
		c = rig_join(d->socket);
		if (i == 0)
			send_fd(c, &faults, sizeof(faults), -1, 0);
		else if (i == 1)
			send_fd(c, &faults, sizeof(faults) - 1, fd, 1);
		else if (i == 2)
			send_fd(c, &faults, sizeof(faults), fd, 8);
		else
			send_fd(c, &faults, 1, -1, 0);
		ends(c);
	}
	for (int i = 0; i < 100 && n_fds_of(d->pid) > n_before; i++)
		usleep(10000);
	ck_assert_uint_le(n_fds_of(d->pid), n_before);
	ck_assert_int_eq(kvc_nop(o), 0);
	stop(d, o);
}
END_TEST

START_TEST(other_descriptors_end_the_session)
{
	struct rig_daemon *d = start("");
	struct kvc *o = rig_join(d->socket), *c;
	int fds[8], p[2];

	ck_assert(!pipe(p));
	fds[0] = p[0];
	fds[1] = p[1];
	fds[2] = open("/dev/null", O_RDWR);
	fds[3] = memfd_create("anon_inode:[userfaultfd]", 0);
	fds[4] = eventfd(0, 0);
	fds[5] = socket(AF_UNIX, SOCK_DGRAM, 0);
	fds[6] = (int)syscall(SYS_userfaultfd, O_NONBLOCK); /* not set up */
	fds[7] = open("/", O_RDONLY);
	for (int i = 0; i < 8; i++) {
		ck_assert_int_ge(fds[i], 0);
		c = rig_join(d->socket);
		send_fd(c, &faults, sizeof(faults), fds[i], 1);
		ends(c);
	}
	c = rig_join(d->socket);
	send_fd(c, &faults, sizeof(faults), uffd_new(O_NONBLOCK, 0), 1);
	ck_assert_int_eq(kvc_nop(c), 0);
	send_fd(c, &faults, sizeof(faults), uffd_new(O_NONBLOCK, 0), 1);
	ends(c); /* a second one */
	stop(d, o);
}
END_TEST

/* A page of shared memory of ours that is registered with fd. */
static char *registered(int fd)
{
	const int m = memfd_create("x", MFD_CLOEXEC);
	struct uffdio_register r = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *p;

	ck_assert(m >= 0 && !ftruncate(m, 1 << 20));
	p = mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE, m, 0);
	r.range.start = (uint64_t)(uintptr_t)p;
	r.range.len = 1 << 20;
	ck_assert_int_eq(ioctl(fd, UFFDIO_REGISTER, &r), 0);
	close(m);
	return p;
}

START_TEST(events_that_nobody_asked_for_end_the_session)
{
	struct rig_daemon *d = start("");
	struct kvc *o = rig_join(d->socket), *c;
	const int fd = uffd_new(O_NONBLOCK, UFFD_FEATURE_EVENT_REMOVE);
	char *p = registered(fd);

	c = rig_join(d->socket);
	send_fd(c, &faults, sizeof(faults), fd, 1);
	ck_assert_int_eq(kvc_nop(c), 0);
	/* waits until somebody has read the event */
	ck_assert_int_eq(madvise(p, 4096, MADV_DONTNEED), 0);
	ends(c);
	stop(d, o);
}
END_TEST

START_TEST(a_fork_event_leaves_no_descriptor)
{
	struct rig_daemon *d = start("");
	struct kvc *o = rig_join(d->socket), *c;
	const uint32_t n_before = n_fds_of(d->pid);
	const int fd = uffd_new(O_NONBLOCK, UFFD_FEATURE_EVENT_FORK);
	pid_t pid;

	(void)registered(fd);
	c = rig_join(d->socket);
	send_fd(c, &faults, sizeof(faults), fd, 1);
	ck_assert_int_eq(kvc_nop(c), 0);
	pid = fork(); /* waits until somebody has read the event */
	if (!pid)
		_exit(0);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	ends(c);
	for (int i = 0; i < 100 && n_fds_of(d->pid) > n_before + 2; i++)
		usleep(10000);
	/* the tenant's thread has two of its own */
	ck_assert_uint_le(n_fds_of(d->pid), n_before + 2);
	stop(d, o);
}
END_TEST

/* ---- what goes by the ring ------------------------------------------------------ */

static int op(struct kvc *c, uint16_t opcode, uint32_t seq, uint64_t a,
	      uint64_t b)
{
	struct kv_sqe e = { .opcode = opcode, .seq = seq, .arg = { a, b } };

	return kvc_call(c, &e);
}

START_TEST(arguments_are_checked)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	const int seq = rig_sequence(c, 1, 2000);
	struct kv_map *m = kvc_alloc(c, sizeof(*m));
	struct kv_map_entry *e = kvc_alloc(c, 16 * sizeof(*e));
	const uint64_t off = kvc_off(c, m);
	const struct kv_map good = { .entries_off = kvc_off(c, e),
				     .n_entries = 16,
				     .skip_off = KV_NO_OFF };
	const uint64_t at = 1ull << 40;
	uint32_t n;

	*m = good;
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off, 0), -ENXIO);
	send_fd(c, &faults, sizeof(faults), uffd_new(O_NONBLOCK, 0), 1);
	ck_assert_int_eq(op(c, KV_OP_MAP, 12345, off, 0), -ENOENT);
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off + 1, 0), -EINVAL);
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, 1ull << 40, 0),
			 -EINVAL);
	m->flags = 1;
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off, 0), -EINVAL);
	*m = good;
	m->_rsvd[2] = 1;
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off, 0), -EINVAL);
	*m = good;
	m->n_entries = UINT32_MAX;
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off, 0), -EINVAL);
	*m = good;
	m->skip_off = kvc_off(c, e);
	m->n_skip = UINT64_MAX / 8 + 2;
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off, 0), -EINVAL);
	*m = good;
	m->n_entries = 1;
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off, 0), -EMSGSIZE);
	n = m->n_entries;
	ck_assert_uint_gt(n, 1);
	ck_assert_uint_le(n, 16);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "maps"), 0);
	*m = good;
	ck_assert_int_eq(op(c, KV_OP_MAP, (uint32_t)seq, off, 0), (int)n);
	ck_assert_uint_eq(rig_counter(c, "tenants", "a", "maps"), n);

	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, 99999, at), -ENOENT);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, 1ull << 33 | e->map, at),
			 -ENOENT);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, e->map, at + 1), -EINVAL);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, e->map, UINT64_MAX - 4095),
			 -EINVAL);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, e->map, at), 0);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, e->map, at), -EALREADY);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, e[1].map, at), -EINVAL);
	ck_assert_int_eq(
		op(c, KV_OP_MAP_AT, 0, e[1].map, at + e->n_bytes - 4096),
		-EINVAL);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, e[1].map, at - 4096), -EINVAL);
	ck_assert_int_eq(op(c, KV_OP_MAP_AT, 0, e[1].map, at + e->n_bytes), 0);
	ck_assert_int_eq(op(c, KV_OP_UNMAP, 0, e->map, 0), 0);
	ck_assert_int_eq(op(c, KV_OP_UNMAP, 0, e->map, 0), -ENOENT);
	ck_assert_int_eq(op(c, KV_OP_UNMAP, 0, 1ull << 32, 0), -ENOENT);
	stop(d, c);
}
END_TEST

/* A child that maps, closes all but the socket, and reads on; or lies on. */
START_TEST(a_client_may_close_its_own_end)
{
	struct rig_daemon *d = start("");
	struct kvc *c = rig_join(d->socket);
	const int seq = rig_sequence(c, 2, 1500);
	struct kvc_map *m = rig_map(c, seq);
	char path[64], link[64];

	for (int fd = 3; fd < 64; fd++) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		memset(link, 0, sizeof(link));
		if (readlink(path, link, sizeof(link) - 1) > 0 &&
		    strstr(link, "userfaultfd"))
			close(fd);
	}
	rig_check_map(m, 2, 1500); /* the daemon has the other end */
	stop(d, c);
}
END_TEST

/* ---- memory that is nobody's ------------------------------------------------------- */

/* The file with pages that c has maps of. */
static int page_file(struct kvc *c)
{
	struct stat st;

	for (int fd = 3; fd < 64; fd++)
		if (fd != c->doorbell && !fstat(fd, &st) &&
		    S_ISREG(st.st_mode) && st.st_size >= 1ll << 30)
			return fd;
	ck_abort_msg("no file of pages");
}

/*
 * Holes of the file are touched as they are, until there are no more or n bytes. In a
 * child: at the limit of the file system it is killed.
 */
static void fill_holes(int fd, uint64_t from, uint64_t n)
{
	const pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		volatile char *p;

		signal(SIGBUS, SIG_DFL);
		p = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, (off_t)from);
		for (uint64_t i = 0; p != MAP_FAILED && i < n; i += 4096)
			(void)p[i];
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
}

START_TEST(holes_that_are_filled_are_the_tenants_own)
{
	char conf[512], socket_b[64];
	struct rig_daemon *d;
	struct kvc *a, *b;

	snprintf(socket_b, sizeof(socket_b), "/tmp/kvd-holes-%d.sock",
		 getpid());
	snprintf(conf, sizeof(conf),
		 "[tenant a]\nuid = %u\nmemory = 8M\ndisk = 256M\n"
		 "[tenant b]\nsocket = %s\nmemory = 8M\ndisk = 256M\n",
		 getuid(), socket_b);
	d = rig_daemon_start(conf);
	ck_assert_ptr_nonnull(d);
	a = rig_join(d->socket);
	rig_map_page_tokens = 1024;
	rig_check_map(rig_map(a, rig_sequence(a, 5, 1024)), 5, 1024);
	fill_holes(page_file(a), 1ull << 29, 64ull << 20);
	b = rig_join(socket_b);
	rig_check_map(rig_map(b, rig_sequence(b, 6, 3000)), 6, 3000);
	rig_map_page_tokens = 0;
	kvc_close(b);
	stop(d, a);
}
END_TEST

/* ---- a kernel that fails --------------------------------------------------------- */

static struct rig_daemon *faulty(const char *more)
{
	if (rig_fault_use())
		return NULL;
	return start(more);
}

static void without_poison(const char *more)
{
	struct rig_daemon *d = faulty(more);
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 3, 1500));
	int n[65] = { 0 };

	rig_catch_signals();
	rig_fault("forever sys.uffd.poison 1 %d", EINVAL);
	rig_damage(d->dir);
	for (uint32_t i = 0; i < m->n_entries; i++)
		for (uint32_t t = 0; t < m->entries[i].n_tokens; t += 16)
			n[rig_touch(m, &m->entries[i], 3, t)]++;
	ck_assert_int_eq(n[1], 0);
	ck_assert_int_gt(n[SIGBUS], 0);
	ck_assert_uint_gt(rig_fault("off"), 0);
	stop(d, c);
}

START_TEST(an_old_kernel_gives_sigbus_too)
{
	without_poison("");
}
END_TEST

START_TEST(each_call_may_fail)
{
	static const char *const calls[] = { "continue", "wake", "" };
	struct rig_daemon *d = faulty("");
	struct kvc *c = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, rig_sequence(c, 4, 1000));

	for (uint32_t i = 0; i < 3; i++)
		for (uint32_t n = 1; n < 20; n++) {
			rig_fault("once sys.uffd.%s %u %d", calls[i], n,
				  n % 2 ? ENOMEM : EFAULT);
			rig_check_map(m, 4, 1000);
		}
	ck_assert_uint_gt(rig_fault("off"), 20);
	stop(d, c);
}
END_TEST

/* ---- who does not wait ----------------------------------------------------------------- */

#define LAYERS 64u /* a page of 8 KiB each */
#define TOKENS 2560u

static int many_pages(struct kvc *c)
{
	const struct kv_geometry g = { .n_layers = LAYERS,
				       .n_heads = 1,
				       .n_kv_heads = 1,
				       .head_dim = 32,
				       .type = KV_F32,
				       .page_tokens = 32,
				       .page_layers = 1 };
	const int seq = kvc_seq_new(c, kvc_geometry(c, &g), 0);
	struct kv_attend_item *it = kvc_alloc(c, sizeof(*it));
	float *kv = kvc_alloc(c, 256 * 32 * sizeof(float));

	ck_assert(seq > 0 && it && kv);
	for (uint32_t t = 0; t < TOKENS; t += 256)
		for (uint32_t l = 0; l < LAYERS; l++) {
			*it = (struct kv_attend_item){ .seq = (uint32_t)seq,
						       .n_tokens = 256,
						       .pos = t,
						       .q_off = KV_NO_OFF,
						       .k_off = kvc_off(c, kv),
						       .v_off = kvc_off(c, kv),
						       .o_off = KV_NO_OFF };
			ck_assert_int_eq(kvc_append(c, it, 1, l, KV_SQE_WAIT),
					 0);
		}
	kvc_free(c, it);
	kvc_free(c, kv);
	ck_assert_int_eq(kvc_seq_seal(c, seq), 0);
	return seq;
}

static sigjmp_buf out;
static volatile sig_atomic_t touching;

static void leave(int sig)
{
	(void)sig;
	if (touching)
		siglongjmp(out, 1);
}

/* A touch, which a timer ends if the daemon does not. */
static void look_in(const char *p)
{
	const struct itimerval soon = { .it_value.tv_usec = 300 };

	touching = 1;
	if (!sigsetjmp(out, 1)) {
		(void)setitimer(ITIMER_REAL, &soon, NULL);
		(void)*(const volatile char *)p;
	}
	touching = 0;
}

static void look_in_all(const struct kvc_map *m, const struct kvc_map_entry *e)
{
	const uint64_t n = (uint64_t)LAYERS * (e->n_tokens / 32);

	for (uint64_t i = 0; i < n; i++)
		look_in((const char *)e->addr + i * m->page_bytes);
}

/* Its pages do not come: memory of the client cannot be had. */
START_TEST(who_leaves_its_faults_is_ended)
{
	struct rig_daemon *d = faulty("");
	struct kvc *c = rig_join(d->socket), *o = rig_join(d->socket);
	struct kvc_map *m = rig_map(c, many_pages(c));

#ifdef __SANITIZE_THREAD__
	printf("who leaves its faults: skipped, the sanitizer keeps signals back while a touch waits\n");
	kvc_close(c);
	stop(d, o);
	return;
#endif
	ck_assert(signal(SIGALRM, leave) != SIG_ERR);
	ck_assert(signal(SIGSEGV, leave) != SIG_ERR); /* once it is ended */
	ck_assert(signal(SIGBUS, leave) != SIG_ERR); /* after seconds */
	rig_fault("forever sys.uffd.continue 1 %d", ENOMEM);
	while (!__atomic_load_n(&c->cq.ring->closed, __ATOMIC_ACQUIRE))
		for (uint32_t i = 0; i < m->n_entries; i++)
			look_in_all(m, &m->entries[i]);
	ends(c);
	rig_fault("off");
	rig_check_map(rig_map(o, rig_sequence(o, 7, 100)), 7, 100);
	stop(d, o);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("map_hostile");
	TCase *t = tcase_create("map_hostile");
	SRunner *r;
	int n;

	if (!rig_daemon_binary()) {
		printf("skipped: there is no kvd binary\n");
		return 77;
	}
	tcase_set_timeout(t, 300);
	tcase_add_test(t, other_messages_end_the_session);
	tcase_add_test(t, other_descriptors_end_the_session);
	tcase_add_test(t, events_that_nobody_asked_for_end_the_session);
	tcase_add_test(t, a_fork_event_leaves_no_descriptor);
	tcase_add_test(t, arguments_are_checked);
	tcase_add_test(t, a_client_may_close_its_own_end);
	tcase_add_test(t, holes_that_are_filled_are_the_tenants_own);
	tcase_add_test(t, an_old_kernel_gives_sigbus_too);
	tcase_add_test(t, each_call_may_fail);
	tcase_add_test(t, who_leaves_its_faults_is_ended);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	n = srunner_ntests_failed(r);
	srunner_free(r);
	return n != 0;
}
