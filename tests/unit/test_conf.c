/*
 * test_conf.c - what a configuration may say, and what it is told if it errs
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kvd/base/conf.h"

#define TENANT "[tenant t]\nuid = 1000\n"

static struct conf conf;
static char err[512];
static char path[] = "kvd-test-conf.XXXXXX";

static int load_bytes(const char *text, size_t n)
{
	char name[sizeof(path)];
	int fd, ret;

	memcpy(name, path, sizeof(path));
	fd = mkstemp(name);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, n), (ssize_t)n);
	close(fd);
	ret = conf_load(name, &conf, err, sizeof(err));
	unlink(name);
	return ret;
}

static int load(const char *text)
{
	return load_bytes(text, strlen(text));
}

#define ck_loads(text) ck_assert_msg(!load(text), "%s", err)

/* ---- sizes -------------------------------------------------------------- */

START_TEST(sizes)
{
	static const struct {
		const char *text;
		uint64_t n;
	} good[] = { { "0", 0 },
		     { "123", 123 },
		     { "64K", 65536 },
		     { "256M", 256u << 20 },
		     { "2G", 2ull << 30 },
		     { "1T", 1ull << 40 },
		     { "18446744073709551615", UINT64_MAX } };
	static const char *const bad[] = {
		"",
		"K",
		"-1",
		"+1",
		" 1",
		"1 ",
		"1KB",
		"1k",
		"1.5G",
		"0x10",
		"18446744073709551616",
		"18014398509481984K",
		"16777216T",
	};
	uint64_t n;

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		ck_assert_int_eq(conf_parse_size(good[i].text, &n), 0);
		ck_assert_uint_eq(n, good[i].n);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(conf_parse_size(bad[i], &n) == -EINVAL, "%s",
			      bad[i]);
}
END_TEST

/* ---- what is accepted --------------------------------------------------- */

START_TEST(defaults)
{
	const struct conf_tenant *t = &conf.tenants[0];

	ck_loads(TENANT "[model m]\npath = /m.gguf\n");
	ck_assert_str_eq(conf.socket, "/run/kvd/kvd.sock");
	ck_assert_uint_eq(conf.socket_mode, 0666);
	ck_assert_str_eq(conf.metrics, "");
	ck_assert_str_eq(conf.state_dir, "/var/lib/kvd");
	ck_assert_uint_eq(conf.memory_bytes, 256u << 20);
	ck_assert_uint_eq(conf.n_threads, 0);
	ck_assert_uint_eq(conf.spin_ns, 20000);
	ck_assert_uint_eq(conf.arena_max_bytes, 64u << 20);
	ck_assert_uint_eq(conf.prefill_slice, 128);
	ck_assert_uint_eq(conf.max_batch, 64);
	ck_assert_int_eq(conf.has_admin_gid, 0);
	ck_assert_int_eq(conf.recompute, 1);
	ck_assert_int_eq(conf.restore_layers, 1);
	ck_assert_int_eq(conf.order, 1);
	ck_assert_uint_eq(conf.scrub_bytes, 4u << 20);
	ck_assert_uint_eq(conf.clean_bytes, 256u << 20);
	ck_assert_str_eq(conf.huge, "auto");
	ck_assert_str_eq(conf.huge_dir, "");
	ck_assert_str_eq(conf.cuda_library, "auto");
	ck_assert_int_eq(conf.device, CONF_DEVICE_CPU);
	ck_assert_uint_eq(conf.device_index, 0);
	ck_assert_uint_eq(conf.host_bytes, conf.memory_bytes);
	ck_assert_str_eq(conf.policy, "density");
	ck_assert_str_eq(t->policy, "density");
	ck_assert_str_eq(conf.log_level, "info");
	ck_assert_int_eq(conf.mlock, 1);
	ck_assert_int_eq(conf.numa_node, -1);
	ck_assert_int_eq(conf.drop_to_uid, -1);
	ck_assert_int_eq(conf.sandbox, 1);
	ck_assert_uint_eq(conf.n_tenants, 1);
	ck_assert_str_eq(t->name, "t");
	ck_assert_str_eq(t->socket, "");
	ck_assert_uint_eq(t->socket_mode, 0660);
	ck_assert_uint_eq(t->memory_bytes, 256u << 20);
	ck_assert_uint_eq(t->disk_bytes, 1u << 30);
	ck_assert_uint_eq(t->max_sequences, 1024);
	ck_assert_uint_eq(t->max_chunks, 16384);
	ck_assert_uint_eq(t->max_requests, 64);
	ck_assert_uint_eq(t->max_sessions, 64);
	ck_assert_int_eq(t->persist, CONF_PERSIST_AUTO);
	ck_assert_uint_eq(conf.n_stores, 0);
	ck_assert_uint_eq(conf.n_models, 1);
	ck_assert_int_eq(conf.models[0].math_f32, 0);
	ck_assert_uint_eq(conf.models[0].page_tokens, 0);
	ck_assert_uint_eq(conf.models[0].page_layers, 0);
}
END_TEST

START_TEST(stores)
{
	ck_loads(TENANT "persist = request\n"
			"[store a]\npath = /mnt/a/kvd.store\nsize = 100G\n"
			"[store b]\npath = /dev/nvme1n1\n");
	ck_assert_int_eq(conf.tenants[0].persist, CONF_PERSIST_REQUEST);
	ck_assert_uint_eq(conf.n_stores, 2);
	ck_assert_str_eq(conf.stores[0].path, "/mnt/a/kvd.store");
	ck_assert_uint_eq(conf.stores[0].bytes, 100ull << 30);
	ck_assert_str_eq(conf.stores[1].name, "b");
	ck_assert_uint_eq(conf.stores[1].bytes, 0);
}
END_TEST

START_TEST(every_key)
{
	const struct conf_tenant *t = &conf.tenants[0];

	ck_loads(
		"; comment\n# another\n[kvd]\nsocket = /tmp/s ; with a remark\n"
		"socket_mode = 0600\nmetrics = tcp:127.0.0.1:9100\n"
		"state_dir = /tmp/state\nmemory = 4G\nthreads = 3\n"
		"spin_us = 50\narena = 1M\nprefill_slice = 256\nbatch = 8\n"
		"admin_group = 1234\nhuge = never\nhuge_dir = /run/h\npolicy = lru\nlog_level = debug\n"
		"mlock = no\nnuma_node = 1\nuser = 1001\nsandbox = no\n"
		"cuda_library = /opt/cuda/libcuda.so.1\n"
		"device = auto\ndevice_index = 2\nhost_memory = 2G\ndevice_spare = 1G\n"
		"[model m-1]\npath = /m 1.gguf\nmath = f32\n"
		"page_tokens = 64\npage_layers = 4\n"
		"[tenant a_b]\nuid = 1000, 1001,root\nuid = 1002\n"
		"gid = 50,\tdaemon\nsocket = /tmp/a\nsocket_mode = 666\n"
		"memory = 1G\ndisk = 0\nsequences = 1\nchunks = 3\nrequests = 2\n"
		"sessions = 3\npolicy = gdsf\n"
		"[tenant b]\nuid = 7\n");
	ck_assert_str_eq(conf.socket, "/tmp/s");
	ck_assert_uint_eq(conf.socket_mode, 0600);
	ck_assert_str_eq(conf.metrics, "tcp:127.0.0.1:9100");
	ck_assert_str_eq(conf.state_dir, "/tmp/state");
	ck_assert_uint_eq(conf.memory_bytes, 4ull << 30);
	ck_assert_uint_eq(conf.n_threads, 3);
	ck_assert_uint_eq(conf.spin_ns, 50000);
	ck_assert_uint_eq(conf.arena_max_bytes, 1 << 20);
	ck_assert_uint_eq(conf.prefill_slice, 256);
	ck_assert_uint_eq(conf.max_batch, 8);
	ck_assert_int_eq(conf.has_admin_gid, 1);
	ck_assert_uint_eq(conf.admin_gid, 1234);
	ck_assert_str_eq(conf.huge, "never");
	ck_assert_str_eq(conf.huge_dir, "/run/h");
	ck_assert_str_eq(conf.cuda_library, "/opt/cuda/libcuda.so.1");
	ck_assert_int_eq(conf.device, CONF_DEVICE_AUTO);
	ck_assert_uint_eq(conf.device_index, 2);
	ck_assert_uint_eq(conf.host_bytes, 2ull << 30);
	ck_assert_uint_eq(conf.device_spare, 1ull << 30);
	ck_assert_str_eq(conf.policy, "lru");
	ck_assert_str_eq(conf.tenants[0].policy, "gdsf");
	ck_assert_str_eq(conf.tenants[1].policy, "lru");
	ck_assert_str_eq(conf.log_level, "debug");
	ck_assert_int_eq(conf.mlock, 0);
	ck_assert_int_eq(conf.numa_node, 1);
	ck_assert_int_eq(conf.drop_to_uid, 1001);
	ck_assert_int_eq(conf.sandbox, 0);
	ck_assert_str_eq(conf.models[0].name, "m-1");
	ck_assert_str_eq(conf.models[0].path, "/m 1.gguf");
	ck_assert_int_eq(conf.models[0].math_f32, 1);
	ck_assert_uint_eq(conf.models[0].page_tokens, 64);
	ck_assert_uint_eq(conf.models[0].page_layers, 4);
	ck_assert_str_eq(t->name, "a_b");
	ck_assert_uint_eq(t->n_uids, 4);
	ck_assert_uint_eq(t->uids[1], 1001);
	ck_assert_uint_eq(t->uids[2], 0);
	ck_assert_uint_eq(t->uids[3], 1002);
	ck_assert_uint_eq(t->n_gids, 2);
	ck_assert_uint_eq(t->gids[0], 50);
	ck_assert_str_eq(t->socket, "/tmp/a");
	ck_assert_uint_eq(t->socket_mode, 0666);
	ck_assert_uint_eq(t->memory_bytes, 1u << 30);
	ck_assert_uint_eq(t->disk_bytes, 0);
	ck_assert_uint_eq(t->max_sequences, 1);
	ck_assert_uint_eq(t->max_chunks, 3);
	ck_assert_uint_eq(t->max_requests, 2);
	ck_assert_uint_eq(t->max_sessions, 3);
}
END_TEST

/* As people write it. */
START_TEST(indented_with_remarks_from_windows)
{
	ck_loads("\xef\xbb\xbf  [kvd] ; of this host\r\n\r\n"
		 "  batch = 8\r\n\tthreads = 3 ; of four\r\n"
		 "[tenant t] # web\r\n\tuid = 1000\r\n\tuid = 1001\r\n"
		 "  ; disk = 0\r\n\tmemory = 1G\r\n");
	ck_assert_uint_eq(conf.max_batch, 8);
	ck_assert_uint_eq(conf.n_threads, 3);
	ck_assert_uint_eq(conf.tenants[0].n_uids, 2);
	ck_assert_uint_eq(conf.tenants[0].memory_bytes, 1u << 30);
}
END_TEST

START_TEST(budgets_that_just_fit)
{
	ck_loads("[kvd]\nmemory = 3G\n[tenant a]\nuid = 1\nmemory = 1G\n"
		 "[tenant b]\nuid = 2\nmemory = 2G\n");
	ck_loads("[tenant a]\nuid = 1\nmemory = 1G\n"
		 "[tenant b]\nuid = 2\nmemory = 2G\n");
	ck_assert_uint_eq(conf.memory_bytes, 3ull << 30);
	ck_assert_uint_eq(conf.disk_bytes, 2ull << 30);
}
END_TEST

/* Limits may be more than there is; what all are sure of may not. */
START_TEST(floors_fit_limits_need_not)
{
	ck_loads("[kvd]\nmemory = 1G\ndisk = 3G\n"
		 "[tenant a]\nuid = 1\nmemory = 1G\nmemory_floor = 256M\n"
		 "disk = 2G\ndisk_floor = 1G\nweight = 300\nio_limit = 32M\n"
		 "[tenant b]\nuid = 2\nmemory = 1G\nmemory_floor = 768M\n"
		 "disk = 2G\n");
	ck_assert_uint_eq(conf.memory_bytes, 1ull << 30);
	ck_assert_uint_eq(conf.disk_bytes, 3ull << 30);
	ck_assert_uint_eq(conf.tenants[0].memory_floor, 256u << 20);
	ck_assert_uint_eq(conf.tenants[0].disk_floor, 1u << 30);
	ck_assert_uint_eq(conf.tenants[0].weight, 300);
	ck_assert_uint_eq(conf.tenants[0].io_limit, 32u << 20);
	ck_assert_uint_eq(conf.tenants[1].io_limit, 0);
	ck_assert_uint_eq(conf.tenants[1].weight, 100);
	/* the disk pool is at most what the stores hold */
	ck_loads("[tenant a]\nuid = 1\ndisk = 2G\n"
		 "[store x]\npath = /x\nsize = 1G\n");
	ck_assert_uint_eq(conf.disk_bytes, 1ull << 30);
}
END_TEST

START_TEST(the_example)
{
	if (access("docs/kvd.conf.example", R_OK)) {
		printf("the_example: not run from the root of the tree\n");
		return;
	}
	ck_assert_msg(
		!conf_load("docs/kvd.conf.example", &conf, err, sizeof(err)),
		"%s", err);
	ck_assert_uint_eq(conf.n_tenants, 2);
	ck_assert_uint_eq(conf.n_models, 1);
}
END_TEST

/* ---- what is refused ---------------------------------------------------- */

/* text, and what the message must have behind the name of the file */
static const struct {
	const char *text, *message;
} refused[] = {
	{ "", ": there is no [tenant NAME]" },
	{ "memory = 1G\n", ":1: memory: before any section" },
	{ "[kvd]\n\nfoo = 1\n", ":3: [kvd] foo: unknown key" },
	{ "[kvd]\nbatch = 1\nbatch = 2\n", ":3: [kvd] batch: given twice" },
	{ "[kvd]\nbatch\n", ":2: neither" },
	{ "[kvd\nbatch = 1\n", ":1: neither" },
	{ "[server]\na = 1\n", ":1: [server]: want [kvd]" },
	{ "[tenant]\nuid = 1\n", ":1: [tenant]: want" },
	{ "[tenants a]\nuid = 1\n", ":1: [tenants a]: want" },
	{ "[tenant A]\nuid = 1\n", ":1: [tenant A]: names are" },
	{ "[tenant a b]\nuid = 1\n", ":1: [tenant a b]: names are" },
	{ "[tenant ../x]\nuid = 1\n", ":1: [tenant ../x]: names are" },
	{ "[tenant aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]\n"
	  "uid = 1\n",
	  ":1: section name longer" },
	{ "[tenant a]\nuid = 1\n[tenant b]\nuid = 2\n[tenant a]\ndisk = 0\n",
	  ":5: [tenant a]: given twice" },
	{ "[model a]\npath = /x\n[tenant b]\nuid = 2\n[model a]\npath = /y\n",
	  ":5: [model a]: given twice" },
	{ "[kvd]\nbatch = 1\n[tenant b]\nuid = 2\n[kvd]\nthreads = 1\n",
	  ":5: [kvd]: given twice" },
	{ "[kvd]\nmemory = lots\n",
	  ":2: [kvd] memory = \"lots\": want a size" },
	{ "[kvd]\nmemory = 1025T\n",
	  ":2: [kvd] memory = \"1025T\": want a size in bytes, or with K, M, "
	  "G or T, at most 1024T" },
	{ "[kvd]\nclean = 2T\n",
	  ":2: [kvd] clean = \"2T\": want a size in bytes, or with K, M, G or "
	  "T, at most 1T" },
	{ "[kvd]\nthreads = 1025\n", ":2: [kvd] threads" },
	{ "[kvd]\nthreads = -1\n", ":2: [kvd] threads" },
	{ "[kvd]\nthreads =\n", ":2: [kvd] threads" },
	{ "[kvd]\nbatch = 0\n", ":2: [kvd] batch" },
	{ "[kvd]\nspin_us = 1e3\n", ":2: [kvd] spin_us" },
	{ "[kvd]\narena = 4K\n", ":2: [kvd] arena" },
	{ "[kvd]\nsocket_mode = 0999\n", ":2: [kvd] socket_mode" },
	{ "[kvd]\nsocket_mode = 01000\n", ":2: [kvd] socket_mode" },
	{ "[kvd]\nsocket_mode = rw\n", ":2: [kvd] socket_mode" },
	{ "[kvd]\nhuge = maybe\n", ":2: [kvd] huge" },
	{ "[kvd]\nhuge = au\n", ":2: [kvd] huge" },
	{ "[kvd]\ncuda_library = libcuda.so\n", ":2: [kvd] cuda_library" },
	{ "[kvd]\ncuda_library = ./x.so\n", ":2: [kvd] cuda_library" },
	{ "[kvd]\ncuda_library =\n", ":2: [kvd] cuda_library" },
	{ "[kvd]\ndevice = gpu\n", ":2: [kvd] device" },
	{ "[kvd]\ndevice_index = -1\n", ":2: [kvd] device_index" },
	{ "[kvd]\ndevice_index = 64\n", ":2: [kvd] device_index" },
	{ "[kvd]\nhost_memory = 4K\n", ":2: [kvd] host_memory" },
	{ "[kvd]\npolicy = lifo\n", ":2: [kvd] policy" },
	{ "[kvd]\npolicy = belady\n", ":2: [kvd] policy" },
	{ TENANT "policy =\n", ":3: [tenant t] policy" },
	{ "[kvd]\nlog_level = all\n", ":2: [kvd] log_level" },
	{ "[kvd]\nmlock = yes\n", ":2: [kvd] mlock" },
	{ "[kvd]\nsandbox = 1\n", ":2: [kvd] sandbox" },
	{ TENANT "persist = yes\n", ":3: [tenant t] persist" },
	{ TENANT "[store a]\nsize = 1G\n", ": [store a]: needs path" },
	{ TENANT "[store a]\npath = /x\nsize = 1G\n"
		 "[store b]\npath = /x\nsize = 1G\n",
	  ": [store b]: path is that of [store a]" },
	{ TENANT "[store a]\npath = /x\n[tenant b]\nuid = 2\n[store a]\n"
		 "size = 1\n",
	  ":7: [store a]: given twice" },
	{ "[kvd]\nnuma_node = 1024\n", ":2: [kvd] numa_node" },
	{ "[kvd]\nuser = no-such-user-here\n", ":2: [kvd] user" },
	{ "[kvd]\nadmin_group = no-such-group-here\n", ":2: [kvd] admin_gro" },
	{ "[kvd]\nstate_dir =\n", ":2: [kvd] state_dir" },
	{ "[kvd]\nmetrics = 9100\n", ":2: [kvd] metrics" },
	{ "[kvd]\nmetrics = unix:\n", ":2: [kvd] metrics" },
	{ "[kvd]\nmetrics = tcp:0.0.0.0:9100\n", ":2: [kvd] metrics" },
	{ "[kvd]\nmetrics = tcp:127.0.0.1:0\n", ":2: [kvd] metrics" },
	{ "[kvd]\nmetrics = tcp:127.0.0.1:65536\n", ":2: [kvd] metrics" },
	{ "[model m]\nmath = f16\n", ":2: [model m] math" },
	{ "[model m]\nmath = f32\n" TENANT, ": [model m]: needs path" },
	{ "[model m]\npage_tokens = 33\n", ":2: [model m] page_tokens" },
	{ "[model m]\npage_tokens = 4128\n", ":2: [model m] page_tokens" },
	{ "[tenant a]\nuid = 65534\n", ":2: [tenant a] uid" },
	{ "[tenant a]\ngid = 65534\n", ":2: [tenant a] gid" },
	{ "[tenant a]\nuid = nobody\n", ":2: [tenant a] uid" },
	{ "[tenant a]\nuid = 4294967295\n", ":2: [tenant a] uid" },
	{ "[tenant a]\nuid = -1\n", ":2: [tenant a] uid" },
	{ "[tenant a]\nuid = 1,\n", ":2: [tenant a] uid" },
	{ "[tenant a]\nuid = 1 2\n", ":2: [tenant a] uid" },
	{ "[tenant a]\nuid = no-such-user-here\n", ":2: [tenant a] uid" },
	{ "[tenant a]\nuid = 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,"
	  "20,21,22,23,24,25,26,27,28,29,30,31,32,33\n",
	  ":2: [tenant a] uid" },
	{ "[tenant a]\nmemory = 4K\n", ":2: [tenant a] memory" },
	{ "[tenant a]\nsequences = 0\n", ":2: [tenant a] sequences" },
	{ "[tenant a]\nchunks = 0\n", ":2: [tenant a] chunks" },
	{ "[tenant a]\nmemory = 1G\n", ": [tenant a]: needs uid, gid or soc" },
	{ "[kvd]\nsocket =\n[tenant a]\nuid = 1\n",
	  ": [tenant a]: there is no socket" },
	{ "[kvd]\nsocket = /s\n[tenant a]\nsocket = /s\n",
	  ": [tenant a]: socket is that of" },
	{ "[tenant a]\nuid = 1,7\n[tenant b]\nuid = 7\n",
	  ": uid 7 is in [tenant a] and [tenant b]" },
	{ "[tenant a]\ngid = 7\n[tenant b]\ngid = 6,7\n",
	  ": gid 7 is in [tenant a] and [tenant b]" },
	{ "[tenant a]\nsocket = /s\n[tenant b]\nsocket = /s\n",
	  ": socket /s is in [tenant a] and" },
	{ "[kvd]\nmemory = 1G\n[tenant a]\nuid = 1\nmemory = 1G\n"
	  "memory_floor = 512M\n[tenant b]\nuid = 2\nmemory = 2G\n"
	  "memory_floor = 513M\n",
	  ": tenants have floors of 1074790400 bytes of memory" },
	{ "[kvd]\ndisk = 1G\n[tenant a]\nuid = 1\ndisk = 1G\n"
	  "disk_floor = 1G\n[tenant b]\nuid = 2\ndisk_floor = 1\n",
	  ": tenants have floors of 1073741825 bytes of disk" },
	{ "[tenant a]\nuid = 1\nmemory = 1G\nmemory_floor = 2G\n",
	  ": [tenant a]: memory_floor is more than memory" },
	{ "[tenant a]\nuid = 1\ndisk = 1G\ndisk_floor = 2G\n",
	  ": [tenant a]: disk_floor is more than disk" },
	{ "[tenant a]\nuid = 1\nio_limit = 1M\n",
	  ":3: [tenant a] io_limit = \"1M\": want a size of at least 16M" },
	{ "[tenant a]\nuid = 1\nweight = 0\n",
	  ":3: [tenant a] weight = \"0\": want 1 to 10000" },
	/* sections without a key, and with one on their line */
	{ TENANT "[server]\n", ":3: [server]: want [kvd]" },
	{ TENANT "[tenant u]\n", ": [tenant u]: needs uid, gid or soc" },
	{ TENANT "[model m]\n", ": [model m]: needs path" },
	{ TENANT "[store a]\n", ": [store a]: needs path" },
	{ TENANT "[tenant t]\nmemory = 1G\n", ":3: [tenant t]: given twice" },
	{ "[kvd]\n[kvd]\n", ":2: [kvd]: given twice" },
	{ "[tenant t] uid = 1\n", ":1: [tenant t]: what follows" },
	{ TENANT "  1001\n", ":3: neither" },
	{ "[kvd]\nsocket = /s\nmetrics = unix:/s\n" TENANT,
	  ": [kvd] metrics: is socket, too" },
	{ "[kvd]\nmetrics = unix:/s\n" TENANT "socket = /s\n",
	  ": [kvd] metrics: is the socket of [tenant t], too" },
	/* the first error counts, whoever finds it */
	{ "[kvd]\nbad line\nfoo = 1\n", ":2: neither" },
	{ "[kvd]\nfoo = 1\nbad line\n", ":2: [kvd] foo: unknown" },
};

START_TEST(errors_name_file_line_and_key)
{
	const char *found;

	ck_assert_msg(load(refused[_i].text) == -EINVAL, "%s",
		      refused[_i].text);
	found = strstr(err, refused[_i].message);
	ck_assert_msg(found == err + strlen(path), "%s\nsays %s\nwants %s",
		      refused[_i].text, err, refused[_i].message);
}
END_TEST

START_TEST(paths_have_limits)
{
	char text[512], long_path[108];

	memset(long_path, 'p', sizeof(long_path) - 1);
	long_path[107] = '\0';
	snprintf(text, sizeof(text), "[kvd]\nsocket = %s\n" TENANT, long_path);
	ck_loads(text);
	ck_assert_str_eq(conf.socket, long_path);
	snprintf(text, sizeof(text), "[kvd]\nsocket = %sx\n" TENANT, long_path);
	ck_assert_int_eq(load(text), -EINVAL);
	snprintf(text, sizeof(text), "[kvd]\nstate_dir = %s%s\n" TENANT,
		 long_path, long_path);
	ck_assert_int_eq(load(text), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err, ":2: line of more than"));
}
END_TEST

START_TEST(too_many_sections)
{
	char *text = malloc(1 << 16), *at = text;

	ck_assert_ptr_nonnull(text);
	for (int i = 0; i <= CONF_MAX_TENANTS; i++)
		at += sprintf(at, "[tenant t%d]\nuid = %d\n", i, i + 1);
	ck_assert_int_eq(load(text), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err, "more than 64 tenants"));
	at = text;
	for (int i = 0; i <= CONF_MAX_MODELS; i++)
		at += sprintf(at, "[model m%d]\npath = /m\n", i);
	ck_assert_int_eq(load(text), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err, "more than 16 models"));
	free(text);
}
END_TEST

START_TEST(a_nul_byte_is_refused)
{
	static const char text[] = "[tenant a]\nuid = 1\0000\nuid = 2\n";

	ck_assert_int_eq(load_bytes(text, sizeof(text) - 1), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err, ":2: line"));
}
END_TEST

START_TEST(files_that_cannot_be_read)
{
	ck_assert_int_eq(
		conf_load("/nonexistent/kvd.conf", &conf, err, sizeof(err)),
		-ENOENT);
	ck_assert_str_eq(err, "/nonexistent/kvd.conf: "
			      "No such file or directory");
	ck_assert_int_eq(conf_load("/", &conf, err, sizeof(err)), -EIO);
}
END_TEST

START_TEST(a_small_buffer_for_the_message)
{
	char small[8];

	ck_assert_int_eq(
		conf_load("/nonexistent/kvd.conf", &conf, small, sizeof(small)),
		-ENOENT);
	ck_assert_str_eq(small, "/nonexi");
	ck_assert_int_eq(conf_load("/nonexistent/kvd.conf", &conf, NULL, 0),
			 -ENOENT);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("conf");
	TCase *tc = tcase_create("conf");
	SRunner *sr;
	int failed;

	tcase_add_test(tc, sizes);
	tcase_add_test(tc, defaults);
	tcase_add_test(tc, every_key);
	tcase_add_test(tc, stores);
	tcase_add_test(tc, indented_with_remarks_from_windows);
	tcase_add_test(tc, budgets_that_just_fit);
	tcase_add_test(tc, floors_fit_limits_need_not);
	tcase_add_test(tc, the_example);
	tcase_add_loop_test(tc, errors_name_file_line_and_key, 0,
			    (int)(sizeof(refused) / sizeof(refused[0])));
	tcase_add_test(tc, paths_have_limits);
	tcase_add_test(tc, too_many_sections);
	tcase_add_test(tc, a_nul_byte_is_refused);
	tcase_add_test(tc, files_that_cannot_be_read);
	tcase_add_test(tc, a_small_buffer_for_the_message);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
