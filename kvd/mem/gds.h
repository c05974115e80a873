/*
 * gds.h - pages of a device read from disk without the host: cuFile (GPUDirect Storage)
 *
 * libcufile is loaded with dlopen(), its declarations are our own. It is used when it is
 * there, has nvidia-fs under it, takes the file, and the kernels that check what was
 * read are there; else nothing is lost: pages go through the host pool as ever. What
 * arrives is checked where it lies: CRC32C by a kernel, of which 4 bytes for each 4 KiB
 * come to the host.
 *
 * Threads: gds_read() on workers, any number; the rest on the loop thread.
 */
#ifndef KVD_MEM_GDS_H
#define KVD_MEM_GDS_H

#include "kernels/cuda_api.h"

struct gds;

struct gds_conf {
	const struct cuda_api *api; /* outlives it, as does ctx */
	cuda_handle ctx;
	/* path of the library; NULL: libcufile.so.0, and only if nvidia-fs is there:
	 * without it cuFile copies through host memory of its own */
	const char *library;
	const void *image; /* kernels; NULL: the binary's */
};
/* Would gds_open() of that library try? 0: there is no nvidia-fs. */
int gds_is_there(const char *library);
/*
 * why gets one line, found or not. -ENOENT no library, or no nvidia-fs; -ENOSYS it lacks
 * a call; -ENODEV it refuses; -ENOTSUP no kernels; -ENOMEM.
 */
int gds_open(struct gds **out, const struct gds_conf *conf, char *why,
	     size_t why_len);
/* No read is in flight. NULL is fine. Blocks. */
void gds_close(struct gds *g);

struct gds_file;
/* fd: O_DIRECT, borrowed until gds_file_close(). -ENOTSUP cuFile does not take the file
 * system; -ENOMEM. Blocks. */
int gds_file_open(struct gds_file **out, struct gds *g, int fd);
void gds_file_close(struct gds_file *f); /* NULL is fine */

/*
 * Read [off, off + n) of f to device memory, multiples of 4096, and its CRC32C. Blocks.
 * 0; -EIO the read failed, or came short; -ENODEV; others of the driver. Then the bytes
 * at to are any.
 */
int gds_read(struct gds_file *f, uint64_t off, cuda_ptr to, size_t n,
	     uint32_t *crc);

#endif
