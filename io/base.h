/*
 * base.h - the whole macro budget of the project, and its GNU extensions
 */
#ifndef IO_BASE_H
#define IO_BASE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define KV_ARRAY_LEN(a)	  (sizeof(a) / sizeof((a)[0]))
#define KV_MIN(a, b)	  ((a) < (b) ? (a) : (b))
#define KV_MAX(a, b)	  ((a) > (b) ? (a) : (b))
#define KV_DIV_UP(n, d)	  (((n) + (d)-1) / (d))
#define KV_ALIGN_UP(n, a) (KV_DIV_UP((n), (a)) * (a))

#define container_of(ptr, type, member) \
	((type *)((char *)(ptr)-offsetof(type, member)))

#define KV_LIKELY(x)	__builtin_expect(!!(x), 1)
#define KV_UNLIKELY(x)	__builtin_expect(!!(x), 0)
#define KV_PRINTF(f, a) __attribute__((format(printf, f, a)))
/* In a loop that waits for another CPU. */
#if defined(__x86_64__)
#define KV_CPU_RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define KV_CPU_RELAX() __asm__ volatile("yield" ::: "memory")
#else
#define KV_CPU_RELAX() __asm__ volatile("" ::: "memory")
#endif
#define KV_UNUSED __attribute__((unused))

#endif
