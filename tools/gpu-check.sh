#!/bin/sh
# What can only be told on a GPU: gpu-check.sh BUILD_DIR; `make gpu-check` calls it.
# Stages of at most eight minutes each; a table at the end. 77: there is no GPU, or
# no nvcc. Logs in BUILD_DIR/gpu/.
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
failed=0
# stage NAME COMMAND...
stage() {
	name=$1
	shift
	begin=$(date +%s)
	timeout -k 10 480 "$@" >"$out/$name.log" 2>&1
	rc=$?
	line=$(grep -a '^[0-9]*%: Checks: ' "$out/$name.log" | tail -n 1)
	case $rc in
	0) what=passed ;;
	77) what=skipped ;;
	124 | 137) what='ran too long' ;;
	*) what="failed ($rc)" ;;
	esac
	[ $rc = 0 ] || [ $rc = 77 ] || failed=1
	printf '%-28s %-14s %4s s  %s\n' "$name" "$what" \
		$(($(date +%s) - begin)) "$line" | tee -a "$out/table"
}
echo "gpu-check: $gpu"
stage build "${MAKE:-make}" "$b/tests/test_gpu_kern" \
	"$b/tests/test_gpu_elem" "$b/tests/test_gpu_gemm" \
	"$b/tests/test_gpu_sample" "$b/kvd" "$b/kvbench"
export KVD_GPU=1 CK_DEFAULT_TIMEOUT=120
stage kernels "$b/tests/test_gpu_kern"
stage elements "$b/tests/test_gpu_elem"
stage products "$b/tests/test_gpu_gemm"
stage sampling "$b/tests/test_gpu_sample"
if command -v compute-sanitizer >/dev/null; then
	# one process: Check's forks are not followed
	export CK_FORK=no
	for tool in memcheck racecheck; do
		stage "kernels_$tool" compute-sanitizer --tool "$tool" \
			--error-exitcode 1 "$b/tests/test_gpu_kern"
	done
else
	printf '%-28s %-14s\n' compute-sanitizer 'not installed' |
		tee -a "$out/table"
fi
unset CK_FORK
stage kvbench "$b/kvbench" gpu
echo
echo "gpu-check: $gpu: $(git rev-parse --short HEAD 2>/dev/null)"
cat "$out/table"
grep -a '^gpu\.' "$out/kvbench.log"
exit $failed
