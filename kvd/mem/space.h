/*
 * space.h - one sparse file of pages of one size, mapped once
 *
 * The file offset is the virtual address. A page has a frame when its part of the
 * file has blocks: space_map() gives it one, space_drop() takes it back. Both are
 * system calls over a whole page and run on workers. Pages that are a multiple of
 * 2 MiB live on a tmpfs with huge=always where there is one; others in a memfd, since
 * a hole smaller than a folio gives nothing back, with smaller folios (folio.h) or none.
 *
 * Thread: open, close, alloc, free on the loop thread; map and drop anywhere.
 */
#ifndef KVD_MEM_SPACE_H
#define KVD_MEM_SPACE_H

#include <stddef.h>
#include <stdint.h>

struct space;

struct space_conf {
	const char *name;
	size_t page_bytes;
	int huge_dir; /* space_huge_dir(); 0: none */
	int folios; /* where it is none: those of folio.h */
	int mlock;
	int numa_node;
};
/*
 * A directory on a tmpfs with huge pages, for space_open(): path, or, when that is
 * NULL, a mount of our own of n_bytes that no path leads to, which needs CAP_SYS_ADMIN.
 * So call it before privileges are dropped. A descriptor > 0, the caller's; -ENOTSUP
 * path is no tmpfs; -errno.
 */
int space_huge_dir(const char *path, uint64_t n_bytes);
int space_open(struct space **out, const struct space_conf *conf);
void space_close(struct space *s);
char *space_base(const struct space *s);
size_t space_page_bytes(const struct space *s);
/* "tmpfs huge" or "memfd". */
const char *space_kind(const struct space *s);
/* Bytes of its folios: 2 MiB, or those of a memfd, see folio.h; 0: pages of 4 KiB. */
size_t space_folio(const struct space *s);
/* Reserve n_pages consecutive virtual pages: the first's number, or -ENOMEM. */
int64_t space_alloc(struct space *s, uint64_t n_pages);
/* Give them back; none has a frame. Returns -ENOMEM if they cannot be noted: they
 * are lost to this space, which does no other harm. */
int space_free(struct space *s, uint64_t first, uint64_t n_pages);
/* Zeroed frames for / no frames for pages [first, first + n). 0, -errno. */
int space_map(struct space *s, uint64_t first, uint64_t n_pages);
int space_drop(struct space *s, uint64_t first, uint64_t n_pages);
/* st_blocks of the file, in bytes. */
uint64_t space_file_bytes(const struct space *s);
/* The file opened anew for reading only, to be passed to a client; the space's own.
 * -errno when it cannot be had. */
int space_share_fd(const struct space *s);
/* A byte for each page, zeros at first, to write (*bytes), and a descriptor to read
 * them, the space's own; made at the first call. -errno. */
int space_states(struct space *s, uint8_t **bytes);

#endif
