/*
 * kv_abi.h - the shared memory between a client and kvd, byte for byte
 *
 * One memfd per session, made and sealed by the daemon:
 *
 *   0                 struct kv_header
 *   sq_off            struct kv_ring, then kv_sqe[sq_entries]
 *   cq_off            struct kv_ring, then kv_cqe[cq_entries]
 *   arena_off         arena: everything an entry points to, by offset
 *
 * [C] the client writes, [D] the daemon writes. All fields little-endian. What
 * the client can write is read once into daemon memory and then checked.
 * Reserved fields are 0 and refused otherwise. Offsets named *_off in entries
 * and arguments are bytes from the start of the arena. docs/abi.md explains
 * each operation. Values are never reused; a newer minor only takes reserved
 * room behind a feature bit.
 */
#ifndef LIBKVCLIENT_KV_ABI_H
#define LIBKVCLIENT_KV_ABI_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define KV_STATIC_ASSERT static_assert
#else
#define KV_STATIC_ASSERT _Static_assert
#endif

#define KV_MAGIC     0x3144564bu /* "KVD1" */
#define KV_ABI_MAJOR 1
#define KV_ABI_MINOR 2

#define KV_FEATURE_ATTEND   (1ull << 0) /* sequences and attention */
#define KV_FEATURE_GENERATE (1ull << 1) /* a hosted model */
#define KV_FEATURE_ADMIN    (1ull << 2) /* this peer may administer */
#define KV_FEATURE_PERSIST  (1ull << 3) /* what is reused survives a restart */
#define KV_FEATURE_MAP	    (1ull << 4) /* KV_OP_MAP; kv_ctl on the socket */
#define KV_FEATURE_REPAIR   (1ull << 5) /* chunks may be repaired */
#define KV_FEATURE_EDIT	    (1ull << 6) /* KV_OP_SEQ_EDIT */
#define KV_FEATURE_VARIANTS (1ull << 7) /* KV_REPAIR_CRAFT, used_off */
#define KV_FEATURE_DEADLINE (1ull << 8) /* kv_generate.deadline_ms */
#define KV_FEATURE_PARALLEL (1ull << 9) /* KV_PART_PARALLEL */
#define KV_FEATURE_FOCUS    (1ull << 10) /* KV_GEN_FOCUS, repair_off */
#define KV_FEATURE_EXPORT   (1ull << 11) /* KV_OP_EXPORT: KV in device memory */
#define KV_FEATURE_STATES   (1ull << 13) /* KV_MAP_STATES */
#define KV_FEATURE_BUFFERS  (1ull << 12) /* KV_OP_BUFFER: device pointers */
#define KV_FEATURE_BLENDED  (1ull << 14) /* KV_REPAIR_CRAFT_BLEND */

/* ---- handshake: one SOCK_SEQPACKET message each way -------------------- */

struct kv_hello { /* [C] */
	uint32_t magic;
	uint16_t major;
	uint16_t minor;
	uint64_t features_want; /* refused when one is missing */
	uint32_t sq_entries; /* power of two, 1..4096; 0: 256 */
	uint32_t cq_entries; /* power of two, >= sq_entries; 0: 2 * sq */
	uint64_t arena_bytes; /* 0: 16 MiB; rounded up to 4 KiB */
	char name[32]; /* for logs; printable or refused */
	uint64_t _rsvd[4];
};
KV_STATIC_ASSERT(sizeof(struct kv_hello) == 96, "kv_hello is ABI");

struct kv_welcome { /* [D] with fds: memfd, doorbell eventfd */
	uint32_t magic;
	uint16_t major;
	uint16_t minor;
	int32_t err; /* 0, or -errno and no fds: -EACCES unknown uid,
				   -EPROTONOSUPPORT, -EDQUOT, -EINVAL */
	uint32_t session; /* id, for logs */
	uint64_t features;
	uint64_t map_bytes; /* size of the memfd */
	char tenant[32];
	char text[64]; /* why err is not 0 */
	uint64_t _rsvd[4];
};
KV_STATIC_ASSERT(sizeof(struct kv_welcome) == 160, "kv_welcome is ABI");

/* ---- the mapping ------------------------------------------------------- */

struct kv_header { /* [D], once */
	uint32_t magic;
	uint16_t major;
	uint16_t minor;
	uint64_t features;
	uint32_t sq_entries;
	uint32_t cq_entries;
	uint64_t sq_off;
	uint64_t cq_off;
	uint64_t arena_off;
	uint64_t arena_bytes;
	uint64_t _rsvd[8];
};
KV_STATIC_ASSERT(sizeof(struct kv_header) == 120, "kv_header is ABI");

/*
 * Indices run freely and wrap at 2^32. Producer: entry, then tail (release).
 * Consumer: tail (acquire), then entry. To sleep the consumer sets asleep,
 * full fence, looks at tail again. The client futex-waits on the cq's tail; the
 * daemon's doorbell is the eventfd. A producer puts a full fence between its
 * tail and reading asleep, and rings only when asleep is 1; it clears it first,
 * so that of a burst only the first pays for the system call. The consumer sets
 * it again before each sleep.
 *
 * Room: the daemon takes an entry only while completions that the client did
 * not consume plus requests in flight are fewer than cq_entries; so a last
 * completion always finds room. Entries beyond wait in the sq.
 */
struct kv_ring {
	uint32_t head; /* consumer: [D] in sq, [C] in cq */
	uint32_t asleep; /* consumer: 1 while it may be sleeping */
	uint32_t _pad0[14];
	uint32_t tail; /* producer: [C] in sq, [D] in cq */
	uint32_t closed; /* cq: [D] -errno when the session ended */
	uint32_t _pad1[14];
};
KV_STATIC_ASSERT(sizeof(struct kv_ring) == 128, "kv_ring is ABI");
KV_STATIC_ASSERT(offsetof(struct kv_ring, tail) == 64, "kv_ring is ABI");

enum kv_op {
	KV_OP_NOP = 0,
	/* ---- attention service; handles are of this session ---- */
	KV_OP_GEOMETRY = 1, /* arg0 off of kv_geometry -> res handle */
	KV_OP_SEQ_NEW = 2, /* arg0 geometry, arg1 max tokens -> res seq */
	KV_OP_SEQ_FREE = 3, /* seq */
	KV_OP_SEQ_FORK = 4, /* seq -> res new seq with the same tokens */
	KV_OP_SEQ_TRUNCATE = 5, /* seq, arg0 tokens to keep */
	KV_OP_SEQ_SEAL = 6, /* seq: its tokens become immutable */
	KV_OP_SEQ_SKIP = 7, /* seq, arg0 from, arg1 to: hide tokens */
	KV_OP_APPEND = 8, /* arg0 kv_attend_item[arg1], arg2 layer */
	KV_OP_ATTEND = 9, /* arg0 kv_attend_item[arg1], arg2 layer */
	KV_OP_SEQ_INFO = 10, /* seq, arg0 off of kv_seq_info [D] */
	KV_OP_MAP = 11, /* seq, arg0 off of kv_map -> res entries */
	KV_OP_MAP_AT = 12, /* arg0 map, arg1 address: its faults are answered */
	KV_OP_UNMAP = 13, /* arg0 map */
	KV_OP_SEQ_EDIT = 14, /* seq, arg0 at, arg1 removed, arg2 inserted */
	/* ---- hosted models ---- */
	KV_OP_GENERATE = 16, /* arg0 off of kv_generate */
	KV_OP_CANCEL = 17, /* arg0 user_data of a request in flight */
	KV_OP_CHUNK_PUT = 18, /* arg0 off of kv_chunk_put */
	KV_OP_CHUNK_RM = 19, /* arg0, arg1: id */
	KV_OP_TOKENIZE = 20, /* arg0 off of kv_tokenize */
	KV_OP_DETOKENIZE = 21, /* arg0 off of kv_tokenize */
	KV_OP_PERSIST = 22, /* ends when all that can be reused is durable */
	/* ---- device memory ---- */
	KV_OP_EXPORT = 23, /* seq, arg0 off of kv_export -> res entries */
	KV_OP_EXPORT_PAGES = 24, /* arg0 export, arg1 page, arg2 pages -> res
				    descriptors, sent before as KV_CTL_FRAMES */
	KV_OP_UNEXPORT = 25, /* arg0 export */
	KV_OP_SEQ_WROTE = 26, /* seq, arg0 tokens written into its tail */
	KV_OP_BUFFER = 27, /* arg0 off of kv_buffer -> res buffer */
	KV_OP_BUFFER_FREE = 28, /* arg0 buffer */
	/* ---- administration and information ---- */
	KV_OP_QUERY = 32, /* arg0 off of kv_query: JSON back */
};

#define KV_SQE_WAIT 1u /* over budget waits instead of -EDQUOT */

struct kv_sqe {
	uint64_t user_data; /* [C] comes back unchanged in the kv_cqe */
	uint16_t opcode; /* [C] enum kv_op */
	uint16_t flags; /* [C] KV_SQE_*; an unknown bit is -EINVAL */
	uint32_t seq; /* [C] sequence handle of this session, or 0 */
	uint64_t arg[4]; /* [C] by opcode; unused ones are 0 */
	uint64_t _rsvd[2]; /* [C] 0, refused otherwise */
};
KV_STATIC_ASSERT(sizeof(struct kv_sqe) == 64, "kv_sqe is ABI");

#define KV_CQE_MORE 1u /* further completions with this user_data follow */

struct kv_cqe {
	uint64_t user_data;
	int32_t res; /* >= 0, or -errno */
	uint32_t flags; /* KV_CQE_* */
	uint64_t arg[2]; /* by opcode */
};
KV_STATIC_ASSERT(sizeof(struct kv_cqe) == 32, "kv_cqe is ABI");

/* ---- arguments in the arena -------------------------------------------- */

enum kv_type { KV_F32 = 0, KV_F16 = 1, KV_BF16 = 2 };
enum kv_rotary {
	KV_ROTARY_NONE = 0,
	KV_ROTARY_INTERLEAVED = 1,
	KV_ROTARY_HALVES = 2
};

struct kv_geometry { /* [C] */
	uint32_t n_layers; /* 1..256 */
	uint32_t n_heads; /* of q; multiple of n_kv_heads, <= 256 */
	uint32_t n_kv_heads; /* 1..256 */
	uint32_t head_dim; /* 32..256, multiple of 8 */
	uint32_t type; /* enum kv_type */
	uint32_t rotary; /* none: q and k come rotated, or need it not */
	uint32_t n_rot; /* rotated dimensions, 0: head_dim */
	float theta; /* base of the frequencies */
	float rope_scale; /* linear scaling of positions; 0 means 1 */
	float scale; /* of the logits; 0: 1/sqrt(head_dim) */
	uint32_t page_tokens; /* 0: the daemon chooses; multiple of 32 */
	uint32_t page_layers; /* 0: the daemon chooses */
	uint64_t _rsvd[4];
};
KV_STATIC_ASSERT(sizeof(struct kv_geometry) == 80, "kv_geometry is ABI");

/*
 * One sequence of a batch. APPEND writes k and v of n_tokens behind the
 * layer's tokens (position pos must be the layer's length). ATTEND with k_off
 * != KV_NO_OFF does that first, then computes the outputs of the n_tokens
 * queries at positions pos..; query i sees the tokens at positions <= pos + i.
 * Element order [n_tokens][heads][head_dim], element type of the geometry, o
 * too.
 */
#define KV_NO_OFF UINT64_MAX
struct kv_attend_item { /* [C], res is [D] */
	uint32_t seq;
	uint32_t n_tokens;
	uint64_t pos;
	uint64_t q_off;
	uint64_t k_off;
	uint64_t v_off;
	uint64_t o_off;
	int32_t res; /* [D] 0 or -errno of this item */
	uint32_t buffer; /* 0, or of KV_OP_BUFFER: q, k, v, o lie there */
	uint64_t _rsvd;
};
KV_STATIC_ASSERT(sizeof(struct kv_attend_item) == 64, "kv_attend_item is ABI");

struct kv_seq_info { /* [D] */
	uint64_t n_tokens;
	uint64_t n_sealed;
	uint64_t n_pages;
	uint64_t n_resident;
	uint64_t _rsvd[4];
};
KV_STATIC_ASSERT(sizeof(struct kv_seq_info) == 64, "kv_seq_info is ABI");

/*
 * Map the sealed tokens of a sequence. Each segment is one run of bytes in a file
 * (or, with KV_MAP_COPY, in nothing: the client's memory is anonymous and filled by
 * the daemon), at file_off, n_bytes long. The client maps it at an address of its
 * choice, registers that with its userfaultfd, and says KV_OP_MAP_AT. Element x of
 * head h of token t (counted in the segment) of layer l lies at
 *
 *   (t / page_tokens * n_groups + l / page_layers) * page_bytes +
 *   ((((l % page_layers) * 2 + v) * n_kv_heads + h) * page_tokens +
 *    t % page_tokens) * head_dim * elem_bytes + x * elem_bytes
 *
 * with v = 0 for K, 1 for V, and n_groups = ceil(n_layers / page_layers).
 */
#define KV_MAP_COPY	     1u
/*
 * KV_MAP_STATES: with the file of each space comes another, with one byte for each of
 * its pages (byte file_off / page_bytes belongs to the entry's first). While that is 1 the
 * page's bytes are there. A thread may map such a page itself (UFFDIO_CONTINUE) when it has,
 * in this order, put KV_HOLD(space, page) into one of the words at holds_off that was 0,
 * made a full fence, and then read 1; afterwards it puts 0 back. What is held is not taken
 * away meanwhile; who holds a page that is wanted back for a second loses the session. The
 * words are the same in all calls of a session, and stay until it ends.
 */
#define KV_MAP_STATES	     2u
#define KV_MAP_HOLDS	     16u
#define KV_HOLD(space, page) ((uint64_t)(space) << 48 | ((page) + 1))
struct kv_map {
	uint64_t entries_off; /* [C] kv_map_entry[n_entries], written by [D] */
	uint32_t n_entries; /* [C] room [D] how many there are */
	uint32_t
		flags; /* [C] KV_MAP_STATES wanted [D] KV_MAP_* that there are */
	uint64_t
		skip_off; /* [C] uint64_t[n_skip], written by [D]: bit t % 64 of
			      word t / 64 is set: token t is hidden */
	uint64_t n_skip; /* [C] room in words [D] how many there are */
	uint64_t n_tokens; /* [D] sealed, from here on */
	uint64_t page_bytes;
	uint32_t n_layers, n_kv_heads, head_dim, elem_bytes;
	uint32_t page_tokens, page_layers;
	uint64_t
		holds_off; /* [C] uint64_t[KV_MAP_HOLDS] with KV_MAP_STATES, else 0 */
	uint64_t _rsvd[3];
};
KV_STATIC_ASSERT(sizeof(struct kv_map) == 104, "kv_map is ABI");

struct kv_map_entry { /* [D] tokens of one segment, in order of the sequence */
	uint32_t map; /* of the segment: the same in all its entries */
	uint32_t space; /* kv_ctl.id of the file; KV_MAP_COPY: 0 */
	uint64_t file_off;
	uint64_t n_bytes;
	uint32_t from; /* first token, counted in the segment */
	uint32_t n_tokens;
	int64_t pos; /* of the first token, in the sequence */
	int64_t base_pos; /* by which its key was rotated, if at all */
	uint64_t _rsvd[2];
};
KV_STATIC_ASSERT(sizeof(struct kv_map_entry) == 64, "kv_map_entry is ABI");

/*
 * Export the sealed tokens of a sequence (with KV_EXPORT_TAIL those of its open tail
 * too) from device memory. Each segment is n_pages pages of page_bytes, each of
 * page_bytes / frame_bytes frames, which the client asks for with KV_OP_EXPORT_PAGES,
 * imports (CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) and maps where it likes. Page
 * i holds group i % n_groups (of page_layers layers) of tokens [i / n_groups *
 * page_tokens, + page_tokens). In it, element 0 of head h of token t of the page,
 * layer l of the group, K (v = 0) or V, lies at
 *
 *   l * layer_stride + v * plane_stride + h * head_stride + t * token_stride
 *
 * KV_EXPORT_BY_TOKEN (geometry with page_tokens = 1): pages of one group, mapped side
 * by side, have that token stride from the first token to the last.
 */
#define KV_EXPORT_TAIL	   1u /* [C] and write behind the last token */
#define KV_EXPORT_BY_TOKEN 2u /* [D] */
struct kv_export {
	uint64_t entries_off; /* [C] kv_export_entry[n_entries], [D] writes */
	uint32_t n_entries; /* [C] room [D] how many there are */
	uint32_t flags; /* [C] KV_EXPORT_TAIL [D] KV_EXPORT_BY_TOKEN */
	uint64_t n_tokens; /* [D] in the entries, from here on */
	uint64_t page_bytes, frame_bytes;
	uint64_t token_stride, head_stride, plane_stride, layer_stride;
	uint32_t n_layers, n_kv_heads, head_dim, elem_bytes;
	uint32_t page_tokens, page_layers;
	uint8_t uuid[16]; /* of the device */
	uint64_t _rsvd[4];
};
KV_STATIC_ASSERT(sizeof(struct kv_export) == 144, "kv_export is ABI");

#define KV_EXPORT_WRITE \
	1u /* the tail: the client may write behind its tokens */
struct kv_export_entry { /* [D] tokens of one segment, in order */
	uint32_t export_id; /* pinned until KV_OP_UNEXPORT */
	uint32_t flags; /* KV_EXPORT_WRITE */
	uint32_t n_pages;
	uint32_t n_room; /* tokens that the tail has room for, all in all */
	uint32_t from; /* first token, counted in the segment */
	uint32_t n_tokens;
	int64_t pos; /* of the first token, in the sequence */
	int64_t base_pos; /* by which its key was rotated, if at all */
	uint64_t _rsvd[3];
};
KV_STATIC_ASSERT(sizeof(struct kv_export_entry) == 64,
		 "kv_export_entry is ABI");

/*
 * Device memory of the client, for items that name it: what cuIpcGetMemHandle()
 * says of an allocation, and with KV_BUFFER_EVENT of an event that the client records
 * behind what writes q, k and v: the call begins when all that it has recorded is done.
 */
#define KV_BUFFER_EVENT 1u
struct kv_buffer { /* [C] */
	uint8_t memory[64]; /* CUipcMemHandle */
	uint8_t event[64]; /* CUipcEventHandle, or 0 */
	uint64_t n_bytes; /* of the allocation, at most */
	uint32_t flags; /* KV_BUFFER_EVENT */
	uint32_t _pad;
	uint64_t _rsvd[6];
};
KV_STATIC_ASSERT(sizeof(struct kv_buffer) == 192, "kv_buffer is ABI");

/*
 * The only messages after the handshake, with KV_FEATURE_MAP or KV_FEATURE_EXPORT, each
 * with one descriptor (KV_CTL_LOST: none; KV_CTL_FRAMES: up to KV_FRAMES_MAX).
 */
#define KV_FRAMES_MAX 64u
enum kv_ctl_kind {
	/* [C] a userfaultfd, before the first KV_OP_MAP */
	KV_CTL_FAULTS = 1,
	/* [D] a file for reading, before the first answer that names it */
	KV_CTL_SPACE = 2,
	/* [D] these pages cannot be had, and the kernel has no UFFDIO_POISON:
	 * the client makes them fault, then wakes who waits */
	KV_CTL_LOST = 3,
	/* [D] frames of pages: id the export, addr the first page, n_bytes how many
	 * descriptors */
	KV_CTL_FRAMES = 4,
	/* [D] the states of a space, before the first answer with KV_MAP_STATES that
	 * names it */
	KV_CTL_STATES = 5,
};
struct kv_ctl {
	uint32_t magic; /* KV_MAGIC */
	uint32_t kind;
	uint32_t id; /* of the space */
	uint32_t _pad;
	uint64_t addr, n_bytes; /* KV_CTL_LOST */
};
KV_STATIC_ASSERT(sizeof(struct kv_ctl) == 32, "kv_ctl is ABI");

enum kv_part_kind {
	KV_PART_TEXT = 0, /* off, len: UTF-8; tokenized by itself */
	KV_PART_TOKENS = 1, /* off, len: uint32_t[len] */
	KV_PART_CHUNK = 2, /* id: a chunk put before */
};
#define KV_PART_REUSE	 1u /* a chunk, found or computed alone */
#define KV_PART_BOS	 2u /* begins with the model's BOS token */
#define KV_PART_PARALLEL 8u /* with REUSE: side by side with others like it */
#define KV_PART_BASE \
	4u /* not in the prompt: earlier version of the next part */

struct kv_part { /* [C] */
	uint32_t kind;
	uint32_t flags;
	uint64_t off;
	uint64_t len;
	uint64_t id[2];
	float temperature; /* KV_PART_PARALLEL: of the logits; else 0 */
	float scale; /* KV_PART_PARALLEL: of ln sum exp; else 0 */
};
KV_STATIC_ASSERT(sizeof(struct kv_part) == 48, "kv_part is ABI");

#define KV_GEN_SCORE	  1u /* no sampling: score the last part's tokens */
#define KV_GEN_NO_REUSE	  2u /* no prefix is found or kept; chunks are */
#define KV_GEN_IGNORE_EOS 4u
#define KV_GEN_LOGITS	  8u /* the first step's logits go to logits_off */
#define KV_GEN_NO_TEXT	  16u /* leave text empty */
/* With repair: chunks that the question does not look at are not repaired to the end. */
#define KV_GEN_FOCUS	  32u

/* Which tokens of a reused chunk are computed again in their context. */
enum kv_repair {
	KV_REPAIR_NONE = 0,
	KV_REPAIR_FIRST = 1, /* the first of each chunk */
	KV_REPAIR_RANDOM = 2,
	KV_REPAIR_BLEND = 3, /* the largest deviation at layer 1 */
	KV_REPAIR_CRAFT = 4, /* variants of chunks; see kv_chunk_used */
	KV_REPAIR_CRAFT_BLEND = 5 /* variants; tokens as with BLEND */
};
#define KV_REPAIR_ALL	  1000u /* permille */
/* instead of a share: by how well each variant fits (with variants only); or as many as
 * can be computed while the chunks are read, 15 % at least */
#define KV_REPAIR_BY_CFO  1001u
#define KV_REPAIR_BY_LOAD 1002u

/* What became of a part of a request with KV_REPAIR_CRAFT or _CRAFT_BLEND. */
enum kv_chunk_use {
	KV_CHUNK_NONE = 0, /* the part is no chunk, or empty */
	KV_CHUNK_FRESH = 1, /* computed here: it becomes a variant */
	KV_CHUNK_EXACT = 2, /* the same stood before it: nothing again */
	KV_CHUNK_INTER = 3, /* another: what looked or deviates most again */
	KV_CHUNK_ALONE = 4 /* computed alone: what deviates most again */
};
struct kv_chunk_used { /* [D] */
	uint64_t variant; /* names it; 0 for FRESH */
	uint32_t use; /* enum kv_chunk_use */
	uint32_t n_tokens;
	uint32_t n_repaired; /* of these computed again */
	uint32_t cfo_permille; /* how badly it fits: 0 as it is .. 1000 */
};
KV_STATIC_ASSERT(sizeof(struct kv_chunk_used) == 24, "kv_chunk_used is ABI");

/* How the chunks of a request were repaired. */
struct kv_gen_repair { /* [D] */
	uint32_t
		permille; /* share of their tokens; with BY_LOAD: as was chosen; BY_CFO: 0 */
	uint32_t n_layers; /* of the model */
	uint32_t
		stop_layer; /* KV_GEN_FOCUS: first that some did not get to; 0: none */
	uint32_t n_stopped; /* tokens that stopped there */
	uint32_t
		n_looked; /* tokens that looked first, through as many layers */
	uint32_t looked_layers;
	uint32_t n_probed; /* tokens that went through layer 0 to be compared */
	uint32_t _rsvd;
};
KV_STATIC_ASSERT(sizeof(struct kv_gen_repair) == 32, "kv_gen_repair is ABI");

#define KV_MAX_STOP 8

/* One generated (or scored) token. */
struct kv_token { /* [D] */
	uint32_t id;
	float logprob; /* natural log, before temperature */
	uint32_t text_off; /* of its first byte in the text buffer */
	uint32_t text_len;
};
KV_STATIC_ASSERT(sizeof(struct kv_token) == 16, "kv_token is ABI");

/* Why a request ended: arg[1] >> 32 of the last completion. */
enum kv_end {
	KV_END_LENGTH = 1,
	KV_END_STOP = 2,
	KV_END_EOS = 3,
	KV_END_SCORED = 4
};

/*
 * Completions: res = tokens so far (cumulative; several may come in one),
 * arg[0] = text bytes so far, KV_CQE_MORE until the last, whose res is the
 * total or -errno, and whose arg[1] low = prompt tokens, high = enum kv_end.
 */
struct kv_generate { /* [C] */
	char model[32]; /* name, "": the only one */
	uint64_t parts_off; /* kv_part[n_parts] */
	uint32_t n_parts; /* 1..1024 */
	uint32_t flags; /* KV_GEN_* */
	uint32_t max_tokens;
	uint32_t n_stop_tokens; /* <= KV_MAX_STOP */
	uint32_t stop_tokens[KV_MAX_STOP];
	uint64_t stop_text_off; /* NUL-separated strings */
	uint32_t stop_text_len; /* bytes with the NULs; <= 1024 */
	uint32_t top_k;
	float temperature; /* 0: greedy */
	float top_p; /* 0 or 1: off */
	float min_p;
	uint32_t _pad;
	uint64_t seed;
	uint64_t tokens_off; /* kv_token[max_tokens] [D]; SCORE: [len + 2] */
	uint64_t text_off; /* [D] text of the tokens */
	uint64_t text_bytes; /* room there; text beyond it is dropped */
	uint64_t logits_off; /* float[n_logits] [D] with KV_GEN_LOGITS */
	uint64_t stats_off; /* kv_gen_stats [D], or KV_NO_OFF */
	uint32_t priority; /* 0 normal .. 3 background */
	uint32_t n_logits; /* room at logits_off, in floats */
	uint32_t repair; /* enum kv_repair */
	uint32_t repair_permille; /* of each chunk's tokens; 0..1000 */
	uint64_t
		used_off; /* with variants: kv_chunk_used[n_parts] [D]; 0: none */
	uint32_t
		deadline_ms; /* KV_FEATURE_DEADLINE: of the first token; 0: none */
	uint32_t _pad2;
	uint64_t repair_off; /* KV_FEATURE_FOCUS: kv_gen_repair [D]; 0: none */
};
KV_STATIC_ASSERT(sizeof(struct kv_generate) == 208, "kv_generate is ABI");

struct kv_gen_stats { /* [D] with the last completion */
	uint64_t n_prompt; /* tokens */
	uint64_t n_prefix; /* of these found by prefix */
	uint64_t n_chunk; /* of these found as chunks */
	uint64_t n_computed; /* of these computed */
	uint64_t queue_ns; /* submission to first scheduling */
	uint64_t ttft_ns; /* submission to first token */
	uint64_t total_ns;
	uint64_t n_read_back; /* pages brought in from disk for it */
	uint64_t n_vocab; /* of the model: that many logits there are */
	uint64_t n_repaired; /* tokens of chunks that were computed again */
	uint64_t n_ahead; /* layers computed while later ones were read */
	uint64_t n_moved; /* tokens taken from earlier versions of parts */
};
KV_STATIC_ASSERT(sizeof(struct kv_gen_stats) == 96, "kv_gen_stats is ABI");

struct kv_chunk_put { /* [C]; id is [D] */
	char model[32];
	uint32_t kind; /* KV_PART_TEXT or KV_PART_TOKENS */
	uint32_t flags; /* 0 */
	uint64_t off;
	uint64_t len;
	uint64_t id[2]; /* [D] with the completion; res = tokens */
	uint64_t _rsvd[2];
};
KV_STATIC_ASSERT(sizeof(struct kv_chunk_put) == 88, "kv_chunk_put is ABI");

/* [C]; res = tokens or bytes in all, even past the room */
struct kv_tokenize {
	char model[32];
	uint64_t text_off;
	uint64_t text_bytes; /* length (tokenize) or room (detokenize) */
	uint64_t tokens_off; /* uint32_t[] */
	uint64_t n_tokens; /* room (tokenize) or count (detokenize) */
	uint64_t _rsvd[2];
};
KV_STATIC_ASSERT(sizeof(struct kv_tokenize) == 80, "kv_tokenize is ABI");

/*
 * Questions about the daemon, answered as JSON: "version", "status", "models";
 * for administrators also "tenants", "stores", "sessions", "sequences", "segments",
 * "chunks", "pages", "usage", "metrics" (Prometheus text), "trace", "drain", "stop".
 * Others get -EACCES. A client that is no administrator sees its own tenant's
 * "sequences", "segments", "chunks", "pages" and "usage". res = bytes of the answer, even past the
 * room.
 */
struct kv_query { /* [C] */
	char what[32];
	char arg[64];
	uint64_t out_off; /* [D] */
	uint64_t out_bytes; /* room */
	uint64_t _rsvd[2];
};
KV_STATIC_ASSERT(sizeof(struct kv_query) == 128, "kv_query is ABI");

#endif
