/*
 * wait.h - one callback, embedded in the struct of who waits
 *
 * done() runs on the loop thread, once, never inside the call that started
 * the work; who embeds the wait keeps it alive until then.
 */
#ifndef KVD_BASE_WAIT_H
#define KVD_BASE_WAIT_H

struct wait {
	void (*done)(struct wait *w, int ret); /* ret: 0, count or -errno */
};

#endif
