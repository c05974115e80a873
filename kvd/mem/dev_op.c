/*
 * dev_op.c - pages between device, host pool and disk; see dev_op.h
 *
 *  (1) A page that is read has a parked copy from the start (then it stays where it is,
 *      park_read_begin()), or gets one from disk.
 *  (2) What a copy that failed may still write to is not used again (park_lose()).
 *  (3) Bytes that came past the host, and are wrong, are read by way of it before anybody says
 *      that the disk is.
 */
#include "kvd/mem/dev_op.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/base/log.h"
#include "kvd/mem/device.h"
#include "kvd/mem/stores.h"

#define SPACE_BYTES (1ull << 40) /* of addresses; halved until it can be had */
#define SPACE_PAGES (1ull << 19)
#define MAP_BYTES   (64u << 20) /* of one operation that maps */

struct dev_io {
	struct kio_req req;
	struct dev_op *dev;
};

struct dev_op {
	struct list node; /* of the pager's */
	struct move *op; /* NULL: not started */
	struct vmm_op vop;
	struct wait vmm_wait, copy_wait;
	struct park_req req;
	struct copy copy;
	struct gds_file *direct; /* READ past the host */
	int was_wrong; /* what came so */
	uint32_t n_ios;
	int io_ret;
	struct copy_part *parts; /* [n units] READ, WRITE */
	struct dev_io *ios; /* [n units] READ */
	struct parked *held[]; /* [n] */
};

static struct device *device_of(const struct move *op)
{
	return op->page->range->pager->conf.device;
}

static struct park_part *part_of(const struct move *op)
{
	return &op->page->range->pager->part;
}

struct dev_op *dev_op_new(const struct range *r, uint32_t n, enum op_kind kind)
{
	const size_t units = n * (r->tier->page_bytes /
				  device_frame_bytes(r->pager->conf.device));
	struct dev_op *d = calloc(1, sizeof(*d) + n * sizeof(d->held[0]));
	int ok = d != NULL;

	if (ok && (kind == OP_READ || kind == OP_WRITE))
		ok = (d->parts = calloc(units, sizeof(*d->parts))) != NULL;
	if (ok && kind == OP_READ)
		ok = (d->ios = calloc(units, sizeof(*d->ios))) != NULL;
	if (d) {
		list_init(&d->node);
		list_init(&d->req.node);
		list_init(&d->copy.node);
	}
	if (!ok) {
		dev_op_free(d);
		return NULL;
	}
	list_push(&r->pager->dev_ops, &d->node);
	return d;
}

void dev_op_free(struct dev_op *d)
{
	if (!d)
		return;
	list_del(&d->node);
	free(d->parts);
	free(d->ios);
	free(d);
}

size_t dev_run_bytes(const struct page *pg, size_t most)
{
	struct device *d = pg->range->pager->conf.device;

	if (!d)
		return most;
	if (pg->state == PAGE_EMPTY)
		return MAP_BYTES;
	return KV_MIN(most, device_page_most(d));
}

/* ---- spaces ---------------------------------------------------------------- */

int dev_space_open(struct pager *p, struct tier *t)
{
	struct device *d = p->conf.device;
	uint64_t n = KV_MIN(SPACE_BYTES / t->page_bytes, SPACE_PAGES);
	int ret = -EINVAL;

	if (t->page_bytes % device_frame_bytes(d) ||
	    t->page_bytes > device_page_most(d))
		return ret;
	for (; n; n /= 2) {
		ret = vmm_space_open(&t->dev_space, device_vmm(d), p->tenant,
				     t->page_bytes, n);
		if (ret != -ENOMEM)
			break;
	}
	if (!ret)
		t->base = (char *)(uintptr_t)vmm_space_base(t->dev_space);
	return ret;
}

struct vmm_space *range_vmm_space(const struct range *r, uint64_t *first)
{
	*first = r->first;
	return r->pager->conf.device ? r->tier->dev_space : NULL;
}

struct device *pager_device(const struct pager *p)
{
	return p->conf.device;
}

/* Of copies up, as long as nothing tells better. */
#define HOST_BYTES_PER_NS 10u

uint64_t dev_load_ns(const struct range *r, uint32_t first, uint32_t n)
{
	const struct stores *s = r->pager->conf.stores;
	uint64_t host = 0, disk = 0;

	for (uint32_t i = first; i < first + n; i++) {
		const struct page *pg = &r->pages[i];

		if (pg->state == PAGE_LOWER)
			*(pg->parked ? &host : &disk) += r->tier->page_bytes;
	}
	return host / HOST_BYTES_PER_NS +
	       (disk ? stores_read_ns(s, r->i_disk, &r->pager->flow, disk) : 0);
}

/* ---- frames ---------------------------------------------------------------- */

static void start_vmm(struct move *op, enum vmm_verb verb,
		      void (*done)(struct wait *w, int ret))
{
	struct range *r = op->page->range;
	struct dev_op *d = op->dev;

	d->op = op;
	d->vmm_wait.done = done;
	d->vop = (struct vmm_op){
		.verb = verb,
		.space = r->tier->dev_space,
		.first = r->first + page_index(op->page),
		.n = op->n,
		.waiter = &d->vmm_wait,
	};
	list_init(&d->vop.node);
	list_init(&d->vop.call.node);
	vmm_start(device_vmm(device_of(op)), &d->vop);
}

static int is_ahead(const struct move *op)
{
	return op->kind == OP_MAP && op_prio(op) >= WANT_PREFETCH;
}

static void note_mapped(struct move *op, uint8_t is_mapped)
{
	struct tier *t = op->page->range->tier;

	for (uint32_t i = 0; i < op->n; i++) {
		t->n_mapped -= op->page[i].mapped;
		op->page[i].mapped = is_mapped;
		t->n_mapped += is_mapped;
	}
}

static void mapped(struct wait *w, int ret)
{
	struct move *op = container_of(w, struct dev_op, vmm_wait)->op;
	int wanted = 0;

	for (uint32_t i = 0; i < op->n; i++)
		wanted |= op->page[i].n_pins != 0;
	if (ret && ret != -ENODEV && op->dev->vop.verb == VMM_AHEAD &&
	    (wanted || ret == -ECANCELED)) {
		op->prio = WANT_NEXT; /* now it is not only a wish */
		dev_map(op);
		return;
	}
	if (!ret)
		note_mapped(op, 1);
	op->ret = ret;
	move_mapped(op);
}

void dev_map(struct move *op)
{
	start_vmm(op, is_ahead(op) ? VMM_AHEAD : VMM_MAP, mapped);
}

static void dropped(struct wait *w, int ret)
{
	struct move *op = container_of(w, struct dev_op, vmm_wait)->op;

	/* with the device its frames are gone */
	op->ret = ret == -ENODEV ? 0 : ret;
	if (!op->ret)
		note_mapped(op, 0);
	move_dropped(op);
}

void dev_drop(struct move *op)
{
	start_vmm(op, VMM_DROP, dropped);
}

int dev_is_stuck(const struct page *pg)
{
	return vmm_stuck(pg->range->tier->dev_space,
			 pg->range->first + page_index(pg));
}

/* ---- copies ---------------------------------------------------------------- */

/* The page of h, unit run by unit run; returns how many parts. */
static uint32_t add_parts(struct copy_part *at, const struct page *pg,
			  const struct parked *h)
{
	cuda_ptr dev = (cuda_ptr)(uintptr_t)page_addr(pg);
	uint32_t n = 0;

	for (uint32_t u = 0; u < h->n_units; u += park_run_units(h, u)) {
		size_t bytes;

		at[n].host = park_run(h, u, &bytes);
		at[n].dev = dev;
		at[n++].n = bytes;
		dev += bytes;
	}
	return n;
}

static enum copy_prio copy_prio(uint32_t prio)
{
	switch (prio) {
	case WANT_STEP:
		return COPY_NOW;
	case WANT_NEXT:
		return COPY_SOON;
	default:
		return COPY_LATER;
	}
}

static void start_copy(struct move *op, enum copy_dir dir, enum copy_prio prio,
		       uint32_t n_parts, void (*done)(struct wait *w, int ret))
{
	struct dev_op *d = op->dev;

	d->copy_wait.done = done;
	d->copy = (struct copy){
		.dir = dir,
		.prio = prio,
		.parts = d->parts,
		.n_parts = n_parts,
		.waiter = &d->copy_wait,
	};
	list_init(&d->copy.node);
	list_init(&d->copy.call.node);
	copy_start(device_copier(device_of(op)), &d->copy);
}

static int get_room(struct move *op, enum park_for what,
		    void (*done)(struct park_req *r, int ret))
{
	struct dev_op *d = op->dev;

	d->op = op;
	d->req = (struct park_req){
		.page_bytes = op->page->range->tier->page_bytes,
		.n = op->n,
		.what = what,
		.prio = (enum want_prio)op_prio(op),
		.out = d->held,
		.done = done,
	};
	return park_get(device_park(device_of(op)), part_of(op), &d->req);
}

/* ---- down ------------------------------------------------------------------ */

static void write_failed(struct move *op, int ret)
{
	op->ret = ret;
	move_written(op);
}

static void put_all(struct move *op, void (*put)(struct parked *h))
{
	for (uint32_t i = 0; i < op->n; i++)
		put(op->dev->held[i]);
}

static void work_crc(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);

	for (uint32_t i = 0; i < op->n; i++)
		op->crc[i] = park_crc(op->dev->held[i]);
}

static void write_crc_done(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);

	for (uint32_t i = 0; i < op->n; i++)
		park_attach(op->page + i, op->dev->held[i], PARK_DIRTY);
	op->ret = 0;
	move_written(op);
}

static void copied_down(struct wait *w, int ret)
{
	struct move *op = container_of(w, struct dev_op, copy_wait)->op;

	if (ret) {
		put_all(op, device_lost(device_of(op)) ? park_lose : park_put);
		write_failed(op, ret);
		return;
	}
	op_work(op, work_crc, write_crc_done);
}

static void write_granted(struct park_req *r, int ret)
{
	struct move *op = container_of(r, struct dev_op, req)->op;
	struct dev_op *d = op->dev;
	uint32_t n_doomed = 0, n = 0;

	if (ret) {
		write_failed(op, ret);
		return;
	}
	for (uint32_t i = 0; i < op->n; i++)
		n_doomed += op->page[i].doomed;
	if (n_doomed == op->n) { /* not worth the trip */
		put_all(op, park_put);
		write_failed(op, -ECANCELED);
		return;
	}
	for (uint32_t i = 0; i < op->n; i++)
		n += add_parts(d->parts + n, op->page + i, d->held[i]);
	start_copy(op, COPY_TO_HOST,
		   op->page->to_go ? COPY_NOW : copy_prio(op_prio(op)), n,
		   copied_down);
}

void dev_write(struct move *op)
{
	const int ret = get_room(op, PARK_WRITE, write_granted);

	if (ret)
		write_granted(&op->dev->req, ret > 0 ? 0 : ret);
}

/* ---- up -------------------------------------------------------------------- */

static void copied_up(struct wait *w, int ret)
{
	struct move *op = container_of(w, struct dev_op, copy_wait)->op;

	op->ret = ret;
	move_read(op);
}

static int is_right(const struct move *op)
{
	uint32_t i = 0;

	while (i < op->n && op->crc[i] == op->page[i].crc)
		i++;
	return i == op->n;
}

/* Pages without a copy in the pool failed their check. */
static void copy_up(struct move *op)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < op->n; i++)
		if (op->page[i].parked)
			n += add_parts(op->dev->parts + n, op->page + i,
				       op->page[i].parked);
	if (!n) {
		op->ret = 0;
		move_read(op);
		return;
	}
	start_copy(op, COPY_TO_DEVICE, copy_prio(op_prio(op)), n, copied_up);
}

static void read_crc_done(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);

	if (op->dev->was_wrong && is_right(op)) /* the disk is sound */
		device_direct_off(device_of(op), -EBADMSG);
	for (uint32_t i = 0; i < op->n; i++) {
		struct page *pg = op->page + i;

		if (op->crc[i] != pg->crc) {
			park_put(op->dev->held[i]);
			continue;
		}
		park_attach(pg, op->dev->held[i], PARK_CLEAN);
		park_read_begin(pg);
	}
	copy_up(op);
}

static void disk_done(struct kio_req *r)
{
	struct dev_op *d = container_of(r, struct dev_io, req)->dev;
	struct move *op = d->op;
	const struct range *range = op->page->range;

	stores_end(range->pager->conf.stores, range->i_disk, r);
	if (r->ret && !d->io_ret)
		d->io_ret = r->ret;
	if (--d->n_ios)
		return;
	pager_from_disk(range->pager, range->i_disk, op->n, 0);
	if (!d->io_ret) {
		op_work(op, work_crc, read_crc_done);
		return;
	}
	put_all(op, park_put);
	op->ret = d->io_ret;
	move_read_failed(op, dev_read);
}

static void read_disk(struct move *op)
{
	const struct page *pg = op->page;
	struct pager *p = pg->range->pager;
	struct dev_op *d = op->dev;
	uint32_t n = 0;

	for (uint32_t i = 0; i < op->n; i++) {
		const struct parked *h = d->held[i];
		uint64_t block = (uint64_t)pg[i].slot;

		for (uint32_t u = 0; u < h->n_units;
		     u += park_run_units(h, u)) {
			struct dev_io *io = &d->ios[n++];
			size_t bytes;

			io->dev = d;
			io->req = (struct kio_req){ .block = block,
						    .done = disk_done };
			io->req.buf = park_run(h, u, &bytes);
			io->req.n_bytes = bytes;
			block += bytes / 4096;
		}
	}
	d->n_ios = n;
	d->io_ret = 0;
	pager_to_disk(p, pg->range->i_disk, op->n, 0);
	for (uint32_t i = 0; i < n; i++)
		stores_read(p->conf.stores, pg->range->i_disk, &p->flow,
			    op_prio(op), &d->ios[i].req);
}

static void read_granted(struct park_req *r, int ret)
{
	struct move *op = container_of(r, struct dev_op, req)->op;

	if (ret) {
		op->ret = ret;
		move_read(op);
		return;
	}
	read_disk(op);
}

/* ---- who is waited for --------------------------------------------------------- */

/* Its requests in the disk's line: a page may lie in several. */
static void hurry_disk(const struct page *pg, enum want_prio prio)
{
	const struct range *r = pg->range;
	struct pager *p = r->pager;
	const size_t frame = device_frame_bytes(p->conf.device);

	for (size_t at = 0; at < r->tier->page_bytes; at += frame)
		(void)stores_hurry(p->conf.stores, r->i_disk, &p->flow, prio,
				   (uint64_t)pg->slot + at / 4096);
}

void dev_hurry(struct page *pg, enum want_prio prio)
{
	struct pager *p = pg->range->pager;

	if (pg->state != PAGE_MAPPING && pg->state != PAGE_READING &&
	    pg->state != PAGE_WRITING)
		return;
	pg->prio = (uint8_t)prio;
	list_for_each(n, &p->dev_ops) {
		struct dev_op *d = list_entry(n, struct dev_op, node);

		if (!d->op || pg < d->op->page || pg >= d->op->page + d->op->n)
			continue;
		if (pg->state == PAGE_MAPPING && prio < WANT_PREFETCH)
			vmm_hurry(device_vmm(p->conf.device), &d->vop);
		park_hurry(device_park(p->conf.device), &d->req, prio);
		copy_hurry(device_copier(p->conf.device), &d->copy,
			   copy_prio(prio));
	}
	if (pg->state == PAGE_READING && !pg->parked)
		hurry_disk(pg, prio);
}

/* ---- up, past the host ------------------------------------------------------- */

static void work_direct(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);
	struct dev_op *d = op->dev;
	const struct page *pg = op->page;
	const size_t n = pg->range->tier->page_bytes;

	d->io_ret = 0;
	for (uint32_t i = 0; i < op->n && !d->io_ret; i++)
		d->io_ret = gds_read(d->direct, (uint64_t)pg[i].slot * 4096,
				     (cuda_ptr)(uintptr_t)page_addr(pg + i), n,
				     &op->crc[i]);
}

/* Whatever is known of its bytes is forgotten. */
static void read_by_host(struct move *op)
{
	int ret;

	memset(op->crc, 0, op->n * sizeof(op->crc[0]));
	ret = get_room(op, PARK_READ, read_granted);
	if (ret)
		read_granted(&op->dev->req, ret > 0 ? 0 : ret);
}

static void direct_done(struct loop_work *w)
{
	struct move *op = container_of(w, struct move, work);
	struct device *d = device_of(op);

	op->dev->was_wrong = !op->dev->io_ret && !is_right(op);
	if (op->dev->io_ret)
		device_direct_off(d, op->dev->io_ret);
	if (op->dev->io_ret || op->dev->was_wrong) {
		read_by_host(op);
		return;
	}
	device_count_direct(d, op->n * op->page->range->tier->page_bytes);
	op->ret = 0;
	move_read(op);
}

static struct gds_file *direct_of(const struct move *op)
{
	const struct range *r = op->page->range;
	struct stores *s = r->pager->conf.stores;
	struct kio_store_info info;
	struct kio_store *disk;

	if (!s || !r->has_disk)
		return NULL;
	disk = stores_disk(s, r->i_disk);
	kio_store_info(disk, &info);
	return info.direct ? device_direct(device_of(op), r->i_disk,
					   kio_store_fd(disk))
			   : NULL;
}

void dev_read(struct move *op)
{
	op->dev->op = op;
	if (op->page->parked) {
		for (uint32_t i = 0; i < op->n; i++)
			op->crc[i] = op->page[i].crc;
		copy_up(op);
		return;
	}
	op->dev->direct = direct_of(op);
	if (op->dev->direct)
		op_work(op, work_direct, direct_done);
	else
		read_by_host(op);
}
