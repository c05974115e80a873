/*
 * test_cuda_share.c - the fake driver in two processes: handles of memory as file
 * descriptors, IPC handles of memory and events, and what it refuses of them
 */
#include <check.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/rig/rig_cuda.h"

#define PAGE 65536u

/* What the other process offers. */
struct offer {
	struct cuda_ipc mem, event;
	size_t n;
};

static struct cuda_api *api;
static struct fake_ctl ctl;
static const struct cuda_mem_prop prop = {
	.type = CUDA_ALLOCATION_PINNED,
	.handle_types = CUDA_HANDLE_POSIX_FD,
	.location = { CUDA_LOCATION_DEVICE, 0 },
};

static void start(void)
{
	cuda_handle ctx;

	api = rig_cuda_open(&ctl, 4 << 20, PAGE);
	ck_assert_int_eq(api->ctx_retain(&ctx, 0), 0);
	ck_assert_int_eq(api->ctx_set(ctx), 0);
}

static void end(void)
{
	ck_assert_int_eq(api->ctx_release(0), 0);
	rig_cuda_close(api, &ctl);
}

static void send_fd(int sock, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c = { { 0 } };
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = c.buf,
			    .msg_controllen = sizeof(c.buf) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &fd, sizeof(fd));
	ck_assert_int_eq(sendmsg(sock, &m, 0), 1);
}

static int recv_fd(int sock)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} c;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = c.buf,
			    .msg_controllen = sizeof(c.buf) };
	int fd;

	ck_assert_int_eq(recvmsg(sock, &m, 0), 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	return fd;
}

/* Memory of a handle at a new address, access as asked. */
static cuda_ptr map(cuda_mem mem, int flags)
{
	const struct cuda_access a = { prop.location, flags };
	cuda_ptr at;

	ck_assert_int_eq(api->reserve(&at, PAGE, 0, 0, 0), 0);
	ck_assert_int_eq(api->map(at, PAGE, 0, mem, 0), 0);
	ck_assert_int_eq(api->set_access(at, PAGE, &a, 1), 0);
	return at;
}

static void unmap(cuda_ptr at)
{
	ck_assert_int_eq(api->unmap(at, PAGE), 0);
	ck_assert_int_eq(api->unreserve(at, PAGE), 0);
}

/* ---- file descriptors ------------------------------------------------------ */

/* The other process: maps what it is sent, reads 5, writes 6. */
static void importer(int sock)
{
	const int fd = recv_fd(sock);
	cuda_mem mem;
	cuda_ptr at;

	start();
	ck_assert_int_eq(api->import_fd(&mem, (void *)(intptr_t)fd,
					CUDA_HANDLE_POSIX_FD),
			 0);
	ck_assert_int_eq(close(fd), 0);
	at = map(mem, CUDA_PROT_READWRITE);
	ck_assert_int_eq(api->release(mem), 0);
	ck_assert_int_eq(*(char *)at, 5);
	*(char *)at = 6;
	unmap(at);
	end();
}

START_TEST(memory_by_descriptor)
{
	int sock[2], fd, status;
	cuda_mem mem;
	cuda_ptr at;
	pid_t pid;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sock), 0);
	pid = fork();
	if (!pid) {
		importer(sock[1]);
		_exit(0);
	}
	start();
	ck_assert_int_eq(api->create(&mem, PAGE, &prop, 0), 0);
	at = map(mem, CUDA_PROT_READWRITE);
	*(char *)at = 5;
	ck_assert_int_eq(api->export_fd(&fd, mem, CUDA_HANDLE_POSIX_FD, 0), 0);
	send_fd(sock[0], fd);
	ck_assert_int_eq(close(fd), 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_assert_int_eq(*(char *)at, 6);
	unmap(at);
	ck_assert_int_eq(api->release(mem), 0);
	end();
}
END_TEST

START_TEST(not_every_descriptor)
{
	const int fd = open("/dev/null", O_RDWR);
	cuda_mem mem;

	start();
	ck_assert_int_eq(api->import_fd(&mem, (void *)(intptr_t)fd,
					CUDA_HANDLE_POSIX_FD),
			 CUDA_INVALID_VALUE);
	ck_assert_int_eq(api->import_fd(&mem, (void *)(intptr_t)-1,
					CUDA_HANDLE_POSIX_FD),
			 CUDA_INVALID_VALUE);
	ck_assert_int_eq(close(fd), 0);
	end();
}
END_TEST

/* ---- IPC handles ------------------------------------------------------------ */

/* The other process: memory, and an event behind a write of 9 that is held until
 * it is told to go. */
static void offerer(int sock)
{
	struct offer o = { .n = PAGE };
	cuda_stream st;
	cuda_event e;
	cuda_ptr at;
	char byte;

	start();
	ck_assert_int_eq(api->alloc(&at, PAGE), 0);
	ck_assert_int_eq(api->stream_new(&st, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->event_new(&e, CUDA_EVENT_DISABLE_TIMING |
						    CUDA_EVENT_INTERPROCESS),
			 0);
	ck_assert_int_eq(api->ipc_mem(&o.mem, at), 0);
	ck_assert_int_eq(api->ipc_event(&o.event, e), 0);
	ctl.hold();
	ck_assert_int_eq(ctl.kernel(st, at, PAGE, 9), 0);
	ck_assert_int_eq(api->event_record(e, st), 0);
	ck_assert_int_eq(write(sock, &o, sizeof(o)), sizeof(o));
	ck_assert_int_eq(read(sock, &byte, 1), 1);
	ctl.go();
	ck_assert_int_eq(read(sock, &byte, 1), 1);
	ck_assert_int_eq(api->stream_sync(st), 0);
	ck_assert_int_eq(*(char *)at, 4);
	ck_assert_int_eq(api->event_free(e), 0);
	ck_assert_int_eq(api->stream_free(st), 0);
	ck_assert_int_eq(api->free(at), 0);
	end();
}

/* It reads only after the event of the other process. */
static void use(const struct offer *o, int sock)
{
	cuda_ptr at, base;
	cuda_stream st;
	cuda_event e;
	size_t n;
	void *host;

	ck_assert_int_eq(api->ipc_open(&at, o->mem, CUDA_IPC_LAZY_PEER), 0);
	ck_assert_int_eq(api->range_of(&base, &n, at + 5), 0);
	ck_assert(base == at && n == PAGE);
	ck_assert_int_eq(api->ipc_event_open(&e, o->event), 0);
	ck_assert_int_eq(api->stream_new(&st, CUDA_STREAM_NON_BLOCKING, 0), 0);
	ck_assert_int_eq(api->host_alloc(&host, PAGE, 0), 0);
	ck_assert_int_eq(api->event_query(e), CUDA_NOT_READY);
	ck_assert_int_eq(api->stream_wait(st, e, 0), 0);
	ck_assert_int_eq(api->d2h(host, at, PAGE, st), 0);
	ck_assert_int_eq(write(sock, "", 1), 1);
	ck_assert_int_eq(api->stream_sync(st), 0);
	ck_assert_int_eq(*(char *)host, 9);
	ck_assert_int_eq(ctl.kernel(st, at, PAGE, 4), 0);
	ck_assert_int_eq(api->stream_sync(st), 0);
	ck_assert_int_eq(api->host_free(host), 0);
	ck_assert_int_eq(api->stream_free(st), 0);
	ck_assert_int_eq(api->event_free(e), 0);
	ck_assert_int_eq(api->ipc_close(at), 0);
	ck_assert_int_eq(write(sock, "", 1), 1);
}

START_TEST(memory_and_events_by_handle)
{
	struct cuda_ipc bad = { { 1 } };
	int sock[2], status;
	struct offer o;
	cuda_event e;
	cuda_ptr at;
	pid_t pid;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sock), 0);
	pid = fork();
	if (!pid) {
		offerer(sock[1]);
		_exit(0);
	}
	start();
	ck_assert_int_eq(read(sock[0], &o, sizeof(o)), sizeof(o));
	ck_assert_int_ne(api->ipc_open(&at, bad, CUDA_IPC_LAZY_PEER), 0);
	ck_assert_int_ne(api->ipc_open(&at, o.event, CUDA_IPC_LAZY_PEER), 0);
	ck_assert_int_ne(api->ipc_event_open(&e, o.mem), 0);
	use(&o, sock[0]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	/* who is gone has nothing to open */
	ck_assert_int_ne(api->ipc_open(&at, o.mem, CUDA_IPC_LAZY_PEER), 0);
	end();
}
END_TEST

START_TEST(not_ones_own)
{
	struct cuda_ipc h;
	cuda_ptr at, other;

	start();
	ck_assert_int_eq(api->alloc(&at, PAGE), 0);
	ck_assert_int_eq(api->ipc_mem(&h, at), 0);
	ck_assert_int_eq(api->ipc_open(&other, h, CUDA_IPC_LAZY_PEER),
			 CUDA_INVALID_CONTEXT);
	ck_assert_int_eq(api->free(at), 0);
	/* managed memory has none */
	ck_assert_int_eq(api->alloc_managed(&at, PAGE, CUDA_MANAGED_GLOBAL), 0);
	ck_assert_int_eq(api->ipc_mem(&h, at), CUDA_INVALID_VALUE);
	ck_assert_int_eq(api->free(at), 0);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cuda_share");
	TCase *t = tcase_create("all");
	SRunner *sr = srunner_create(s);
	int n;

	tcase_add_test(t, memory_by_descriptor);
	tcase_add_test(t, not_every_descriptor);
	tcase_add_test(t, memory_and_events_by_handle);
	tcase_add_test(t, not_ones_own);
	suite_add_tcase(s, t);
	srunner_run_all(sr, CK_NORMAL);
	n = srunner_ntests_failed(sr);
	srunner_free(sr);
	return n ? 1 : 0;
}
