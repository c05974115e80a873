/*
 * vmm_host.c - spaces in host memory; see space.h
 */
#include "kvd/mem/space.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <numa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>
#include "io/base.h"
#include "io/sys.h"
#include "kvd/base/log.h"
#include "kvd/mem/extent.h"
#include "kvd/mem/folio.h"

#define HUGE_BYTES  (2ull << 20)
#define SPACE_BYTES (1ull << 40) /* virtual; halved until it can be had */
#define SPACE_LEAST (1ull << 30)
#define SPACE_PART \
	8 /* of what there is, when it is less: the others need theirs */
#define KIND_MEMFD "memfd"

struct space {
	int fd;
	int share_fd; /* read-only, or -errno */
	char *base;
	size_t page_bytes;
	uint64_t n_pages;
	const char *kind;
	size_t folio; /* of a memfd (folio.h); 0: none */
	struct extents free; /* virtual pages */
	uint8_t *states; /* [n_pages]; NULL: nobody asked */
	int states_fd;
};

/* ---- the file ------------------------------------------------------------ */

static int mount_tmpfs(uint64_t n_bytes)
{
	const int fs = kio_sys_fsopen("tmpfs");
	char size[32];
	int ret;

	if (fs < 0)
		return fs;
	(void)snprintf(size, sizeof(size), "%llu", (unsigned long long)n_bytes);
	ret = kio_sys_fsconfig(fs, "huge", "always");
	if (!ret)
		ret = kio_sys_fsconfig(fs, "size", size);
	/* who is asked for a file later may be another user */
	if (!ret)
		ret = kio_sys_fsconfig(fs, "mode", "1777");
	if (!ret)
		ret = kio_sys_fsmount(fs);
	close(fs);
	return ret;
}

static int open_tmpfs(const char *path)
{
	const int fd = kio_sys_open(path, O_RDONLY | O_DIRECTORY, 0);
	struct statfs st;
	int ret;

	if (fd < 0)
		return fd;
	ret = kio_sys_fstatfs(fd, &st);
	if (ret || st.f_type != TMPFS_MAGIC) {
		close(fd);
		return ret ? ret : -ENOTSUP;
	}
	return fd;
}

int space_huge_dir(const char *path, uint64_t n_bytes)
{
	return path ? open_tmpfs(path) : mount_tmpfs(n_bytes);
}

static int open_memfd(const char *name)
{
	int fd = kio_sys_memfd(name, MFD_ALLOW_SEALING);
	int ret;

	if (fd < 0)
		return fd;
	/* a memfd is 0777: others could reopen it through /proc */
	ret = kio_sys_fchmod(fd, 0600);
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}

static int open_file(struct space *s, const struct space_conf *c)
{
	s->fd = -ENOTSUP;
	if (c->huge_dir > 0 && c->page_bytes % HUGE_BYTES == 0) {
		s->fd = kio_sys_openat(c->huge_dir, ".", O_TMPFILE | O_RDWR,
				       0600);
		s->kind = "tmpfs huge";
		if (s->fd < 0)
			log_warn("space", "%s: a file with huge pages: %s",
				 c->name, strerror(-s->fd));
	}
	if (s->fd < 0) {
		s->fd = open_memfd(c->name);
		s->kind = KIND_MEMFD;
		s->folio = c->folios ? folio_of(c->page_bytes) : 0;
		if (s->folio && !folio_is_on(s->folio))
			s->folio = 0;
	}
	return s->fd < 0 ? s->fd : 0;
}

static void advise(const char *what, void *at, size_t n_bytes, int advice)
{
	const int ret = kio_sys_madvise(at, n_bytes, advice);

	if (ret)
		log_warn("space", "%s: %s", what, strerror(-ret));
}

/* At an address that suits the folios; what is too much of it is given back. */
static int map_shifted(struct space *s, uint64_t n, void **base)
{
	const size_t extra = 3 * s->folio;
	char *from, *at;
	void *p;
	int ret = kio_sys_mmap(NULL, n + extra, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			       0, &p);

	if (ret)
		return ret;
	from = p;
	at = folio_shift(from, s->folio);
	ret = kio_sys_mmap(at, n, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_NORESERVE | MAP_FIXED, s->fd, 0,
			   base);
	if (ret) {
		(void)kio_sys_munmap(from, n + extra);
		return ret;
	}
	if (at > from)
		(void)kio_sys_munmap(from, (size_t)(at - from));
	(void)kio_sys_munmap(at + n, extra - (size_t)(at - from));
	return 0;
}

static int map_bytes(struct space *s, uint64_t n, void **base)
{
	const int ret = kio_sys_ftruncate(s->fd, (off_t)n);

	if (ret)
		return ret;
	return s->folio ? map_shifted(s, n, base)
			: kio_sys_mmap(NULL, n, PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_NORESERVE, s->fd, 0,
				       base);
}

/*
 * A page has its own bytes of memory and no more, else it cannot be given back: looked
 * at, as what the kernel does here is its own affair.
 */
static int ask_folios(struct space *s)
{
	const size_t n = s->n_pages * s->page_bytes;
	int ret = kio_sys_madvise(s->base, n, MADV_HUGEPAGE);
	int dropped;

	if (!ret)
		ret = space_map(s, 1, 1);
	if (!ret && space_file_bytes(s) != s->page_bytes)
		ret = -ENOTSUP;
	dropped = space_drop(s, 0, s->n_pages);
	if (dropped)
		return dropped;
	if (!ret && space_file_bytes(s))
		ret = -ENOTSUP;
	if (!ret)
		return 0;
	log_warn("space", "folios of %zu KiB: %s", s->folio >> 10,
		 strerror(-ret));
	s->folio = 0;
	return 0;
}

/* The largest size that can be mapped; a part of it where addresses are few. */
static int map_file(struct space *s)
{
	const uint64_t most = SPACE_BYTES / s->page_bytes * s->page_bytes;
	uint64_t n = most, part;
	void *base = NULL;
	int ret = -ENOMEM;

	for (; n >= SPACE_LEAST; n = n / 2 / s->page_bytes * s->page_bytes) {
		ret = map_bytes(s, n, &base);
		if (!ret)
			break;
	}
	part = n / SPACE_PART / s->page_bytes * s->page_bytes;
	if (!ret && n < most && part >= SPACE_LEAST) {
		(void)kio_sys_munmap(base, n);
		n = part;
		ret = map_bytes(s, n, &base);
	}
	if (ret)
		return ret;
	s->base = base;
	s->n_pages = n / s->page_bytes;
	advise("a child of a fork would hold frames", base, n, MADV_DONTFORK);
	advise("a core would hold what tenants said", base, n, MADV_DONTDUMP);
	ret = s->folio ? ask_folios(s) : 0;
	if (ret)
		return ret;
	/* or khugepaged fills the holes, where a host has it do so for all */
	if (!space_folio(s))
		advise("pages of 4 KiB", base, n, MADV_NOHUGEPAGE);
	/* tmpfs has no seals; who may open it again could cut it off under us */
	return strcmp(s->kind, KIND_MEMFD)
		       ? 0
		       : kio_sys_add_seals(s->fd, F_SEAL_SHRINK | F_SEAL_GROW);
}

/* While we may still open it: later the daemon may be another user. */
static int open_to_read(int fd)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return kio_sys_open(path, O_RDONLY, 0);
}

/* Wishes: what cannot be had is said once and done without. */
static void place(struct space *s, const struct space_conf *c)
{
	const size_t n = s->n_pages * s->page_bytes;
	int ret;

	if (c->numa_node >= 0 && numa_available() >= 0) {
		struct bitmask *m = numa_allocate_nodemask();

		numa_bitmask_setbit(m, (unsigned int)c->numa_node);
		ret = kio_sys_prefer_node(s->base, n, m->maskp, m->size + 1);
		if (ret)
			log_warn("space", "%s: node %d: %s", c->name,
				 c->numa_node, strerror(-ret));
		numa_free_nodemask(m);
	}
	ret = c->mlock ? kio_sys_mlock_on_fault(s->base, n) : 0;
	if (ret)
		log_info("space", "%s: frames are not locked: %s", c->name,
			 strerror(-ret));
}

int space_open(struct space **out, const struct space_conf *conf)
{
	struct space *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return -ENOMEM;
	s->page_bytes = conf->page_bytes;
	s->share_fd = -EBADF;
	ret = open_file(s, conf);
	if (ret) {
		free(s);
		return ret;
	}
	ret = map_file(s);
	if (!ret)
		ret = extents_init(&s->free, s->n_pages);
	if (ret) {
		space_close(s);
		return ret;
	}
	s->share_fd = open_to_read(s->fd);
	place(s, conf);
	*out = s;
	return 0;
}

void space_close(struct space *s)
{
	if (!s)
		return;
	if (s->base)
		(void)kio_sys_munmap(s->base, s->n_pages * s->page_bytes);
	close(s->fd);
	if (s->share_fd >= 0)
		close(s->share_fd);
	if (s->states) {
		(void)kio_sys_munmap(s->states, s->n_pages);
		close(s->states_fd);
	}
	extents_fini(&s->free);
	free(s);
}

char *space_base(const struct space *s)
{
	return s->base;
}

size_t space_page_bytes(const struct space *s)
{
	return s->page_bytes;
}

const char *space_kind(const struct space *s)
{
	return s->kind;
}

size_t space_folio(const struct space *s)
{
	return strcmp(s->kind, KIND_MEMFD) ? HUGE_BYTES : s->folio;
}

/* ---- virtual pages ----------------------------------------------------------- */

int64_t space_alloc(struct space *s, uint64_t n_pages)
{
	return extents_take(&s->free, n_pages);
}

int space_free(struct space *s, uint64_t first, uint64_t n_pages)
{
	return extents_give(&s->free, first, n_pages);
}

/* ---- frames -------------------------------------------------------------------- */

int space_map(struct space *s, uint64_t first, uint64_t n_pages)
{
	const size_t off = first * s->page_bytes, n = n_pages * s->page_bytes;
	int ret;

	if (s->folio) { /* of which only a fault knows */
		ret = kio_sys_madvise(s->base + off, n, MADV_POPULATE_WRITE);
		if (ret) /* some of it is there */
			(void)space_drop(s, first, n_pages);
		return ret;
	}
	ret = kio_sys_fallocate(s->fd, 0, (off_t)off, (off_t)n);
	/*
	 * Zeroed and in the page table here, on a worker: else the loop thread
	 * does it while it submits the read, or an engine thread at its first
	 * store. Where the kernel cannot, they do.
	 */
	if (!ret)
		(void)kio_sys_madvise(s->base + off, n, MADV_POPULATE_WRITE);
	return ret;
}

int space_drop(struct space *s, uint64_t first, uint64_t n_pages)
{
	return kio_sys_fallocate(s->fd,
				 FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 (off_t)(first * s->page_bytes),
				 (off_t)(n_pages * s->page_bytes));
}

uint64_t space_file_bytes(const struct space *s)
{
	struct stat st;

	return kio_sys_fstat(s->fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}

int space_share_fd(const struct space *s)
{
	return s->share_fd;
}

/* ---- states --------------------------------------------------------------------- */

static int map_states(struct space *s, int fd)
{
	void *base;
	int ret = kio_sys_ftruncate(fd, (off_t)s->n_pages);

	if (!ret)
		ret = kio_sys_add_seals(fd, F_SEAL_SHRINK | F_SEAL_GROW);
	if (ret)
		return ret;
	s->states_fd = open_to_read(fd);
	if (s->states_fd < 0)
		return s->states_fd;
	ret = kio_sys_mmap(NULL, s->n_pages, PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_NORESERVE, fd, 0, &base);
	if (ret)
		close(s->states_fd);
	else
		s->states = base;
	return ret;
}

int space_states(struct space *s, uint8_t **bytes)
{
	int fd, ret;

	if (!s->states) {
		fd = open_memfd("kvd-states");
		if (fd < 0)
			return fd;
		ret = map_states(s, fd);
		close(fd); /* the mapping keeps it */
		if (ret)
			return ret;
		advise("a child of a fork would hold states", s->states,
		       s->n_pages, MADV_DONTFORK);
	}
	*bytes = s->states;
	return s->states_fd;
}
