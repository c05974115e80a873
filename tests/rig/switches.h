/*
 * switches.h - the kernel's switches of folios (kvd/mem/folio.h), as a test wants them
 *
 * In a mount namespace of the caller's own: files that say word, and do nothing. What other
 * processes do to the real ones is not seen.
 */
#ifndef RIG_SWITCHES_H
#define RIG_SWITCHES_H

/* 0; -errno: it may not, then nothing is changed. */
int rig_switches(const char *word);
/* 1: that is what the one of kib KiB begins with now. */
int rig_switch_is(unsigned int kib, const char *text);

#endif
