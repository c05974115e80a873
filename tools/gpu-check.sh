#!/bin/sh
# What can only be told on a GPU. `make gpu-check` calls it.
#
#   gpu-check.sh BUILD_DIR             build, then run every stage
#   gpu-check.sh --pack DIR BUILD_DIR  build, and collect in DIR what the stages need
#   gpu-check.sh --from DIR            run what was packed; nothing is built or fetched
#
# For a machine with a GPU and little else: DIR (at most 64 MiB) has the programs, stripped, the
# libraries they need save libc, models and questions; --from runs them by LD_LIBRARY_PATH.
#
# Stages of at most eight minutes each, each on its own; figures are printed as they
# are measured, so that a run that is cut off still tells something; a table at the end.
# Into BUILD_DIR/gpu, DIR/gpu or $GPU_CHECK_OUT: table, figures, logs.tar.gz, renewed after
# each stage. 77: there is no GPU, or no nvcc. GPU_CHECK_STAGES="build kernels" runs these alone.
# GPU_CHECK_QUICK=1: less of everything, a smaller model: for the driver library of the tests.
# GPU_CHECK_LIMIT: seconds of a stage, where that is slow.
tests='gpu_kern gpu_same gpu_grid gpu_elem gpu_gemm gpu_sample gpu_keep llama_gpu'
pack_limit_kib=65536
skip() {
	echo "gpu-check: skipped: $*"
	exit 77
}
die() {
	echo "gpu-check: $*" >&2
	exit 1
}
targets() {
	for t in $tests; do
		echo "$b/tests/test_$t"
	done
	echo "$b/kvd" "$kvbench" "$b/demo"
}

# ---- pack
# Libraries of $1..., closed under what they need; those of libc are the other machine's.
libraries() {
	ldd "$@" | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
		grep -Ev '/(libc|libm|libpthread|librt|libdl|libresolv|ld-linux[^/]*)\.so'
}
pack() {
	d=$1
	b=$2
	kvbench=$b/tests/kvbench-plain
	[ -n "$NVCC" ] || skip "no nvcc: the kernels cannot be compiled"
	# shellcheck disable=SC2046 # a list
	"${MAKE:-make}" $(targets) || exit
	mkdir -p "$d/bin" "$d/tests" "$d/lib" "$d/data/models" "$d/data/eval" ||
		die "$d: cannot be made"
	cp "$b/kvd" "$b/demo" "$d/bin/"
	cp "$kvbench" "$d/bin/kvbench"
	for t in $tests; do
		cp "$b/tests/test_$t" "$d/tests/"
	done
	for l in $(libraries "$d"/bin/* "$d"/tests/*); do
		cp -L "$l" "$d/lib/"
	done
	strip "$d"/bin/* "$d"/tests/* "$d"/lib/*
	cp tests/data/models/rag-mini.gguf tests/data/models/rag-draft.gguf \
		"$d/data/models/"
	cp tests/data/eval/rag-zipf.jsonl "$d/data/eval/"
	cp tools/gpu-check.sh tools/sdpa.py "$d/"
	git rev-parse --short HEAD >"$d/commit" 2>/dev/null
	kib=$(du -sk "$d" | cut -f 1)
	echo "gpu-check: packed $kib KiB in $d; there: sh $d/gpu-check.sh --from $d"
	[ "$kib" -le "$pack_limit_kib" ] || die "more than $pack_limit_kib KiB"
	exit 0
}

given=$LD_LIBRARY_PATH
case $1 in
--pack)
	[ $# = 3 ] || die "usage: gpu-check.sh --pack DIR BUILD_DIR"
	pack "$2" "$3"
	;;
--from)
	[ -d "$2" ] || die "usage: gpu-check.sh --from DIR"
	b=$(cd "$2" && pwd)
	bin=$b/bin
	kvbench=$bin/kvbench
	KVD_DATA=$b/data
	sdpa=$b/sdpa.py
	commit=$(cat "$b/commit")
	LD_LIBRARY_PATH=$b/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	;;
*)
	[ $# = 1 ] || die "usage: gpu-check.sh BUILD_DIR | --pack DIR BUILD_DIR | --from DIR"
	b=$1
	bin=$b
	kvbench=$b/kvbench # beside kvd, which it starts
	KVD_DATA=tests/data
	sdpa=tools/sdpa.py
	commit=$(git rev-parse --short HEAD 2>/dev/null)
	[ -n "$NVCC" ] || skip "no nvcc: the kernels cannot be compiled"
	;;
esac
command -v nvidia-smi >/dev/null || skip "no nvidia-smi: there is no driver"
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1) ||
	skip "nvidia-smi: $gpu"

# cuBLASLt is where the toolkit is, or in Python's packages
find_cublas() {
	for l in "${CUDA_HOME:-/usr/local/cuda}"/lib64 \
		$(python3 -c 'import glob, sys
for p in sys.path:
    for d in glob.glob(p + "/nvidia*/lib") + glob.glob(p + "/nvidia/*/lib"):
        print(d)' 2>/dev/null); do
		for f in "$l"/libcublasLt.so.1[123]; do
			[ -e "$f" ] || continue
			echo "$l"
			return
		done
	done
}
cublas=$(find_cublas)
LD_LIBRARY_PATH=$LD_LIBRARY_PATH${cublas:+${LD_LIBRARY_PATH:+:}$cublas}
export LD_LIBRARY_PATH KVD_DATA

# ---- stages
out=${GPU_CHECK_OUT:-$b/gpu}
logs=$(mktemp -d) || exit
trap 'rm -rf "$logs"' EXIT
mkdir -p "$out"
: >"$out/table"
: >"$out/figures"
failed=0
wanted() {
	[ -z "$GPU_CHECK_STAGES" ] && return 0
	case " $GPU_CHECK_STAGES " in
	*" $1 "*) return 0 ;;
	esac
	return 1
}
# stage NAME COMMAND...
stage() {
	name=$1
	shift
	wanted "$name" || return 0
	begin=$(date +%s)
	echo "gpu-check: $name"
	{
		timeout -k 10 "${GPU_CHECK_LIMIT:-480}" "$@" 2>&1
		echo $? >"$logs/rc"
	} | tee "$logs/$name.log" | grep -a --line-buffered -E \
		'^gpu\.|^demo|tokens/s|^== |^wide tiles|Failures: [1-9]|:[FE]:' |
		tee -a "$out/figures"
	rc=$(cat "$logs/rc")
	rm "$logs/rc"
	line=$(grep -a '^[0-9]*%: Checks: ' "$logs/$name.log" | tail -n 1)
	[ -n "$line" ] || line=$(grep -a 'skipped: ' "$logs/$name.log" | tail -n 1)
	case $rc in
	0) what=passed ;;
	77) what=skipped ;;
	124 | 137) what='ran too long' ;;
	*) what="failed ($rc)" ;;
	esac
	[ "$rc" = 0 ] || [ "$rc" = 77 ] || failed=1
	printf '%-28s %-14s %4s s  %s\n' "$name" "$what" \
		$(($(date +%s) - begin)) "$line" | tee -a "$out/table"
	tar -czf "$out/logs.tar.gz" -C "$logs" .
}
echo "gpu-check: $gpu: $commit; cuBLASLt: ${cublas:-where the loader finds it}"
# shellcheck disable=SC2046 # a list
[ "$1" = --from ] || stage build "${MAKE:-make}" $(targets)
# tests set limits of their own, for a machine that is slower than they know
export KVD_GPU=1 CK_TIMEOUT_MULTIPLIER=4
stage kernels "$b/tests/test_gpu_kern"
stage wgmma "$b/tests/test_gpu_same"
stage grid "$b/tests/test_gpu_grid"
stage elements "$b/tests/test_gpu_elem"
stage products "$b/tests/test_gpu_gemm"
stage sampling "$b/tests/test_gpu_sample"
stage queries "$b/tests/test_gpu_keep"
stage model "$b/tests/test_llama_gpu"
unset KVD_GPU
quick=${GPU_CHECK_QUICK:+--quick}
# shellcheck disable=SC2086 # nothing, or one word
stage kvbench "$kvbench" gpu $quick
# shellcheck disable=SC2086
stage pages "$kvbench" gpu --pages $quick
if python3 -c 'import torch' 2>/dev/null; then
	# its libraries are torch's own business
	stage sdpa env LD_LIBRARY_PATH="$given" python3 "$sdpa"
elif wanted sdpa; then
	printf '%-28s %-14s\n' sdpa 'no torch' | tee -a "$out/table"
fi
# the main job with all KV on the device, and a budget that pages
if [ -n "$quick" ]; then
	stage main_job env "KVD_DEMO_CONF=device = cuda
[model rag-mini]
gate = no" "$bin/demo" "$bin/kvd" "$KVD_DATA/models/rag-draft.gguf" \
		"$KVD_DATA/eval/rag-zipf.jsonl" "$b/gpu-state" 12 40
else
	stage main_job env KVD_DEMO_CONF='device = cuda' "$bin/demo" \
		"$bin/kvd" "$KVD_DATA/models/rag-mini.gguf" \
		"$KVD_DATA/eval/rag-zipf.jsonl" "$b/gpu-state" 100 192
fi
# why it failed, if it did
if [ -e "$b/gpu-state/kvd.log" ]; then
	cp "$b/gpu-state/kvd.log" "$logs/main_job.kvd.log"
	tar -czf "$out/logs.tar.gz" -C "$logs" .
fi
wanted main_job && rm -rf "$b/gpu-state"
export KVD_GPU=1
if command -v compute-sanitizer >/dev/null; then
	# one process: Check's forks are not followed; all kernels of kvd
	export CK_FORK=no
	for tool in memcheck racecheck; do
		for t in gpu_kern gpu_grid gpu_elem gpu_gemm gpu_sample; do
			stage "${t}_$tool" compute-sanitizer --tool "$tool" \
				--error-exitcode 1 "$b/tests/test_$t"
		done
	done
else
	printf '%-28s %-14s\n' compute-sanitizer 'not installed' |
		tee -a "$out/table"
fi

# ---- the table
# Decode over what torch reads in the same shape; the worst is the line.
ratios() {
	awk '/^gpu\.attention\.decode\.b[0-9]+\.t[0-9]+\.gb_s / {
		split($1, n, "."); ours[n[4] "." n[5]] = $2
	}
	/^gpu\.sdpa(_packed)?\.b[0-9]+\.t[0-9]+\.gb_s / {
		split($1, n, "."); theirs[n[2] " " n[3] "." n[4]] = $2
	}
	END {
		for (k in theirs) {
			split(k, p, " ")
			if (!(p[2] in ours) || theirs[k] <= 0)
				continue
			r = ours[p[2]] / theirs[k]
			printf "gpu.attention.decode.%s.%s_ratio %.4g x\n", \
				p[2], p[1], r
			if (!(p[1] in worst) || r < worst[p[1]])
				worst[p[1]] = r
		}
		for (w in worst)
			printf "gpu.attention.decode.%s_ratio %.4g x\n", w, worst[w]
	}' "$out/figures" | sort
}
ratios >"$logs/ratios"
cat "$logs/ratios" >>"$out/figures"
{
	echo "gpu-check: $gpu: $commit"
	cat "$out/table"
	grep -a '^wide tiles' "$out/figures" | sort | uniq -c
	grep -a '^gpu\.' "$out/figures"
} >"$logs/all"
cp "$logs/all" "$out/table"
echo
cat "$out/table"
exit $failed
