#!/bin/sh
# What can only be told on a GPU: gpu-check.sh BUILD_DIR; `make gpu-check` calls it.
# Stages of at most eight minutes each, each on its own; figures are printed as they
# are measured, so that a run that is cut off still tells something; a table at the end.
# 77: there is no GPU, or no nvcc. Logs in BUILD_DIR/gpu/.
# GPU_CHECK_STAGES="build kernels" runs these alone.
b=$1
out=$b/gpu
mkdir -p "$out"
skip() {
	echo "gpu-check: skipped: $*"
	exit 77
}
[ -n "$NVCC" ] || skip "no nvcc: the kernels cannot be compiled"
command -v nvidia-smi >/dev/null || skip "no nvidia-smi: there is no driver"
gpu=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1) ||
	skip "nvidia-smi: $gpu"

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
		timeout -k 10 480 "$@" 2>&1
		echo $? >"$out/rc"
	} | tee "$out/$name.log" | grep -a --line-buffered -E \
		'^gpu\.|^demo|tokens/s|^== |Failures: [1-9]|:[FE]:' |
		tee -a "$out/figures"
	rc=$(cat "$out/rc")
	line=$(grep -a '^[0-9]*%: Checks: ' "$out/$name.log" | tail -n 1)
	case $rc in
	0) what=passed ;;
	77) what=skipped ;;
	124 | 137) what='ran too long' ;;
	*) what="failed ($rc)" ;;
	esac
	[ "$rc" = 0 ] || [ "$rc" = 77 ] || failed=1
	printf '%-28s %-14s %4s s  %s\n' "$name" "$what" \
		$(($(date +%s) - begin)) "$line" | tee -a "$out/table"
}
echo "gpu-check: $gpu"
tests='gpu_kern gpu_elem gpu_gemm gpu_sample'
built=
for t in $tests; do
	built="$built $b/tests/test_$t"
done
# shellcheck disable=SC2086 # a list
stage build "${MAKE:-make}" $built "$b/kvd" "$b/kvbench" "$b/demo"
export KVD_GPU=1 CK_DEFAULT_TIMEOUT=240
stage kernels "$b/tests/test_gpu_kern"
stage elements "$b/tests/test_gpu_elem"
stage products "$b/tests/test_gpu_gemm"
stage sampling "$b/tests/test_gpu_sample"
if command -v compute-sanitizer >/dev/null; then
	# one process: Check's forks are not followed; of each kind what is small
	export CK_FORK=no
	for tool in memcheck racecheck; do
		for t in gpu_kern gpu_elem; do
			stage "${t}_$tool" compute-sanitizer --tool "$tool" \
				--error-exitcode 1 "$b/tests/test_$t"
		done
	done
else
	printf '%-28s %-14s\n' compute-sanitizer 'not installed' |
		tee -a "$out/table"
fi
unset CK_FORK KVD_GPU
# the main job with all KV on the device, and a budget that pages
stage main_job env KVD_DEMO_CONF='device = cuda' "$b/demo" "$b/kvd" \
	tests/data/models/rag-mini.gguf tests/data/eval/rag-zipf.jsonl \
	"$out/demo-state" 100 192
stage kvbench "$b/kvbench" gpu
stage pages "$b/kvbench" gpu --pages
echo
echo "gpu-check: $gpu: $(git rev-parse --short HEAD 2>/dev/null)"
cat "$out/table"
grep -a '^gpu\.' "$out/figures"
exit $failed
