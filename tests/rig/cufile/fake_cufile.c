/*
 * fake_cufile.c - build/tests/libfakecufile.so: cuFile over the fake driver's memory, which
 * the host can write
 *
 * FAKE_CUFILE=driver, handle, read, short or flip in the environment: that call fails, the read
 * is half, or one byte of it is wrong. Any thread.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

struct cufile_error {
	int err, cuda;
};
struct cufile_descr {
	int type;
	union {
		int fd;
		void *handle;
	} handle;
	const void *ops;
};

static unsigned long n_reads;

static int is(const char *what)
{
	const char *env = getenv("FAKE_CUFILE");

	return env && !strcmp(env, what);
}

struct cufile_error cuFileDriverOpen(void);
struct cufile_error cuFileDriverOpen(void)
{
	return (struct cufile_error){ is("driver") ? 5001 : 0, 0 };
}

struct cufile_error cuFileDriverClose(void);
struct cufile_error cuFileDriverClose(void)
{
	return (struct cufile_error){ 0, 0 };
}

struct cufile_error cuFileHandleRegister(void **out, struct cufile_descr *d);
struct cufile_error cuFileHandleRegister(void **out, struct cufile_descr *d)
{
	int *fd;

	if (is("handle") || d->type != 1)
		return (struct cufile_error){ 5027, 0 };
	fd = malloc(sizeof(*fd));
	*fd = d->handle.fd;
	*out = fd;
	return (struct cufile_error){ 0, 0 };
}

void cuFileHandleDeregister(void *handle);
void cuFileHandleDeregister(void *handle)
{
	/* its files are open as long as it has them */
	if (fcntl(*(int *)handle, F_GETFD) < 0)
		abort();
	free(handle);
}

ssize_t cuFileRead(void *handle, void *to, size_t n, off_t off, off_t to_off);
ssize_t cuFileRead(void *handle, void *to, size_t n, off_t off, off_t to_off)
{
	char *p = (char *)to + to_off;
	ssize_t k;

	__atomic_fetch_add(&n_reads, 1, __ATOMIC_RELAXED);
	if (is("read"))
		return -5030;
	if (is("short"))
		n = n / 2 / 4096 * 4096;
	k = pread(*(int *)handle, p, n, off);
	if (k > 100 && is("flip"))
		p[100] = (char)(p[100] ^ 1);
	return k;
}

unsigned long fake_cufile_reads(void);
unsigned long fake_cufile_reads(void)
{
	return __atomic_load_n(&n_reads, __ATOMIC_RELAXED);
}
