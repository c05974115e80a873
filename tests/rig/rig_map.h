/*
 * rig_map.h - sequences whose every element is known, mapped and read
 *
 * Three layers in two page groups, f32, pages of 64 KiB for 32 tokens. The salt says
 * which of several sequences; no element is 0. All assert.
 */
#ifndef TESTS_RIG_RIG_MAP_H
#define TESTS_RIG_RIG_MAP_H

#include "libkvclient/kvclient.h"

#define RIG_MAP_LAYERS 3u
/* Tokens of a page of sequences that are made from now on; 0: 32. */
extern uint32_t rig_map_page_tokens;
/* 1: maps are made by kvc_map_by_signal(). Then rig_catch_signals() comes first. */
extern int rig_map_by_signal;

void rig_append_layer(struct kvc *c, int seq, uint32_t salt, uint32_t from,
		      uint32_t n, uint32_t layer);
void rig_append(struct kvc *c, int seq, uint32_t salt, uint32_t from,
		uint32_t n);
/* A sealed sequence of n tokens. */
int rig_sequence(struct kvc *c, uint32_t salt, uint32_t n);
struct kvc_map *rig_map(struct kvc *c, int seq);
/* 1 if token i of the entry is what was appended, all layers. */
int rig_token_ok(const struct kvc_map *m, const struct kvc_map_entry *e,
		 uint32_t salt, uint32_t i);
/* All n tokens are. */
void rig_check_map(const struct kvc_map *m, uint32_t salt, uint32_t n);
/* From here on SIGBUS and SIGSEGV are what rig_touch() returns. */
void rig_catch_signals(void);
/* 0 the token is right, 1 it is wrong, or the signal. */
int rig_touch(const struct kvc_map *m, const struct kvc_map_entry *e,
	      uint32_t salt, uint32_t i);
/* Flip a bit in every page on the disk of the daemon in dir. */
void rig_damage(const char *dir);

#endif
