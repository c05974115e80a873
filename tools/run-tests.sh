#!/bin/sh
# Run test binaries: run-tests.sh BUILD_DIR BINARY...
# As many at once as there are CPUs (TEST_JOBS=n). Each prints the closing line of
# the Check library and its seconds; 77 is skipped. What failed is said again at the
# end, so that the last lines of a long log are enough. The last line is "N passed,
# N failed, N skipped" over all checks. Logs in BUILD_DIR/tests/*.log.

# One binary: its line on stdout, its counts in LOG.counts.
one() {
	name=$(basename "$1")
	log="$b/tests/$name.log"
	start=$(date +%s)
	timeout -k 10 "$limit" "$1" >"$log" 2>&1
	rc=$?
	secs=$(($(date +%s) - start))
	if [ $rc = 77 ]; then
		echo 0 0 1 >"$log.counts"
		echo "$name: skipped: $(grep -ai skip "$log" | tail -n 1)"
		return
	fi
	line=$(grep -a '^[0-9]*%: Checks: ' "$log" | tail -n 1)
	n=$(echo "$line" | sed -n 's/.*Checks: \([0-9]*\),.*/\1/p')
	f=$(echo "$line" | sed -n 's/.*Failures: \([0-9]*\),.*/\1/p')
	e=$(echo "$line" | sed -n 's/.*Errors: \([0-9]*\).*/\1/p')
	bad=$((${f:-0} + ${e:-0}))
	if [ $rc != 0 ] && [ $bad = 0 ]; then
		bad=1
		n=$((${n:-0} + 1))
	fi
	# tests of a binary that cannot run here say so, one line each
	skips=$(grep -ac ': skipped' "$log")
	echo $((${n:-0} - bad)) $bad "$skips" >"$log.counts"
	echo "$name: ${line:-no result} ($secs s)"
	[ "$skips" = 0 ] || grep -a ': skipped' "$log" | sed "s/^/$name: /"
	if [ $bad != 0 ]; then
		[ $rc = 124 ] && echo "$name: ran longer than $limit s"
		tail -n 40 "$log"
	fi
}

b=$1
limit=${TEST_TIMEOUT:-600}
[ "${KVD_LONG:-0}" = 1 ] && limit=3600
# limits say that a test hangs, not that the machine is slow
export CK_DEFAULT_TIMEOUT="${CK_DEFAULT_TIMEOUT:-60}"
case $b in
*/asan | */ubsan | */tsan)
	limit=$((4 * limit))
	export CK_TIMEOUT_MULTIPLIER="${CK_TIMEOUT_MULTIPLIER:-5}"
	;;
esac
export KVD_BIN="$b/kvd" KVCTL_BIN="$b/kvctl" KVBENCH_BIN="$b/kvbench"
if [ "$2" = -one ]; then
	one "$3"
	exit 0
fi
shift
begin=$(date +%s)
for t in "$@"; do
	rm -f "$b/tests/$(basename "$t").log.counts"
done
printf '%s\n' "$@" | xargs -n 1 -P "${TEST_JOBS:-$(nproc)}" "$0" "$b" -one
echo "$# test binaries in $(($(date +%s) - begin)) s"
for t in "$@"; do
	log="$b/tests/$(basename "$t").log"
	case $(cat "$log.counts" 2>/dev/null) in
	*" 0 "*) continue ;;
	esac
	echo "failed: $(basename "$t"):"
	grep -aE ':[FE]:|Sanitizer: |runtime error: ' "$log" | head -n 8 |
		cut -c 1-300 | grep . || tail -n 8 "$log" | cut -c 1-300
done
for t in "$@"; do
	cat "$b/tests/$(basename "$t").log.counts" || echo 0 1 0
done | awk '{ p += $1; f += $2; s += $3 }
	END { print p " passed, " f " failed, " s " skipped"; exit f != 0 }'
