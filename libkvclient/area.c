/*
 * area.c - memory whose faults are answered: by the daemon, or by whoever faults (here.h)
 *
 * The invariants are those of map.c. Any thread, with the lock of the maps.
 */
#include "libkvclient/map_priv.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "libkvclient/here.h"

/* The same of an area with a door. Who waits in the door goes on, reads nothing of it,
 * and meets the area again. */
static void door_shut(const struct kvc_maps *ms, const struct area *a)
{
	struct uffdio_range r = { (uint64_t)(uintptr_t)a->addr, a->n_bytes };

	if (mprotect(a->addr, a->n_bytes, PROT_NONE))
		return;
	kvc_here_remove(a->addr);
	(void)ioctl(ms->uffd_here, UFFDIO_UNREGISTER, &r);
	r.start = (uint64_t)(uintptr_t)a->door;
	if (mmap(a->door, a->n_bytes, PROT_READ,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
		 0) == MAP_FAILED)
		(void)mprotect(a->door, a->n_bytes,
			       PROT_NONE); /* SIGSEGV there */
	(void)ioctl(ms->uffd, UFFDIO_WAKE, &r);
}

/* (1): from here on a touch is SIGSEGV, now and for whoever waits. */
void kvc_area_shut(const struct kvc_maps *ms, const struct area *a)
{
	struct uffdio_range r = { (uint64_t)(uintptr_t)a->addr, a->n_bytes };

	if (a->door) {
		door_shut(ms, a);
		return;
	}
	/* PROT_NONE splits nothing: it cannot fail for want of anything; if it did,
	 * waiting is better than zeros */
	if (!mprotect(a->addr, a->n_bytes, PROT_NONE))
		(void)ioctl(ms->uffd, UFFDIO_UNREGISTER, &r);
}

void kvc_area_unmap(const struct area *a)
{
	(void)munmap(a->addr, a->n_bytes);
	if (a->door)
		(void)munmap(a->door, a->n_bytes);
}

static int is_ours(const struct kvc_maps *ms, uint64_t addr, uint64_t n)
{
	for (struct mapping *m = ms->list; m; m = m->next)
		for (uint32_t i = 0; i < m->n_areas; i++) {
			const struct area *a = &m->areas[i];
			const uint64_t at =
				(uint64_t)(uintptr_t)(a->door ? a->door
							      : a->addr);

			if (addr >= at && n <= m->areas[i].n_bytes &&
			    addr - at <= m->areas[i].n_bytes - n)
				return 1;
		}
	return 0;
}

/* Pages that cannot be had, on a kernel without UFFDIO_POISON: behind the end of an
 * empty file lies SIGBUS. */
void kvc_area_lose(struct kvc_maps *ms, uint64_t addr, uint64_t n)
{
	struct uffdio_range r = { addr, n };
	int fd;
	void *at = (void *)(uintptr_t)addr, *p = MAP_FAILED;

	if (!is_ours(ms, addr, n))
		return; /* not asked for */
	fd = memfd_create("kvc-lost", MFD_CLOEXEC);
	if (fd >= 0)
		p = mmap(at, n, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
	if (p == MAP_FAILED)
		(void)mprotect(at, n, PROT_NONE); /* then it is SIGSEGV */
	else
		(void)madvise(at, n, MADV_DONTFORK); /* as it was */
	if (fd >= 0)
		(void)close(fd); /* the mapping keeps it */
	(void)ioctl(ms->uffd, UFFDIO_WAKE, &r);
}

/*
 * The file's bytes (fd < 0: memory), stopping whoever touches what is not there. Out of
 * reach until it does: after mlockall(MCL_FUTURE) it would be filled with zeros at once.
 */
static int map_trapped(int uffd, int fd, uint64_t off, uint64_t n, char **out)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	void *p =
		mmap(NULL, n, PROT_NONE,
		     MAP_PRIVATE | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0),
		     fd, (off_t)off);

	if (p == MAP_FAILED)
		return -errno;
	reg.range.start = (uint64_t)(uintptr_t)p;
	reg.range.len = n;
	if (fd >= 0)
		reg.mode |= UFFDIO_REGISTER_MODE_MINOR;
	if (madvise(p, n, MADV_DONTFORK) || madvise(p, n, MADV_DONTDUMP) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg) || mprotect(p, n, PROT_READ)) {
		const int err = -errno;

		(void)munmap(p, n); /* nobody knows of it */
		return err;
	}
	/* wishes: one fault fills a page of the daemon's */
	(void)madvise(p, n, MADV_NOHUGEPAGE);
	*out = p;
	return 0;
}

/* An area with a door: 0, -errno. */
static int area_map_here(struct kvc_maps *ms, struct area *a,
			 const struct kv_map_entry *e, uint64_t page_bytes)
{
	const struct states *s = &ms->states[e->space];
	const uint64_t first = page_bytes ? e->file_off / page_bytes : 0;
	struct kvc_here h = { .n_bytes = e->n_bytes,
			      .page_bytes = page_bytes,
			      .states = s->bytes + first,
			      .holds = ms->holds,
			      .hold = KV_HOLD(e->space, first),
			      .uffd = ms->uffd_here };
	int ret;

	if (!page_bytes || !s->bytes || e->file_off % page_bytes ||
	    first > s->n ||
	    (e->n_bytes + page_bytes - 1) / page_bytes > s->n - first)
		return -EPROTO;
	ret = map_trapped(ms->uffd, ms->spaces[e->space], e->file_off,
			  e->n_bytes, &h.door);
	if (ret)
		return ret;
	ret = map_trapped(ms->uffd_here, ms->spaces[e->space], e->file_off,
			  e->n_bytes, &h.addr);
	if (!ret) {
		ret = kvc_here_add(&h);
		if (ret)
			(void)munmap(h.addr, e->n_bytes);
	}
	if (ret) {
		(void)munmap(h.door, e->n_bytes); /* nobody knows of them */
		return ret;
	}
	a->addr = h.addr;
	a->door = h.door;
	a->n_bytes = e->n_bytes;
	return 0;
}

int kvc_area_map(struct kvc_maps *ms, struct area *a,
		 const struct kv_map_entry *e, const struct kv_map *k)
{
	const int copy = k->flags & KV_MAP_COPY;
	int ret;

	if (!copy && (e->space >= KVC_MAX_SPACES || ms->spaces[e->space] < 0))
		return -EPROTO;
	if (k->flags & KV_MAP_STATES && ms->uffd_here >= 0)
		return area_map_here(ms, a, e, k->page_bytes);
	ret = map_trapped(ms->uffd, copy ? -1 : ms->spaces[e->space],
			  copy ? 0 : e->file_off, e->n_bytes, &a->addr);
	if (!ret)
		a->n_bytes = e->n_bytes;
	return ret;
}
