#!/bin/sh
# Run test binaries: run-tests.sh BUILD_DIR BINARY...
# Each prints the closing line of the Check library; 77 is skipped. The last line is
# "N passed, N failed, N skipped" over all checks. Logs in BUILD_DIR/tests/*.log.
b=$1
shift
passed=0 failed=0 skipped=0
limit=${TEST_TIMEOUT:-600}
[ "${KVD_LONG:-0}" = 1 ] && limit=3600
export KVD_BIN="$b/kvd" KVCTL_BIN="$b/kvctl" KVBENCH_BIN="$b/kvbench"
for t in "$@"; do
	name=$(basename "$t")
	log="$b/tests/$name.log"
	start=$(date +%s)
	timeout -k 10 "$limit" "$t" >"$log" 2>&1
	rc=$?
	secs=$(($(date +%s) - start))
	line=$(grep -a '^[0-9]*%: Checks: ' "$log" | tail -n 1)
	if [ $rc = 77 ]; then
		skipped=$((skipped + 1))
		echo "$name: skipped: $(grep -ai skip "$log" | tail -n 1)"
		continue
	fi
	n=$(echo "$line" | sed -n 's/.*Checks: \([0-9]*\),.*/\1/p')
	f=$(echo "$line" | sed -n 's/.*Failures: \([0-9]*\),.*/\1/p')
	e=$(echo "$line" | sed -n 's/.*Errors: \([0-9]*\).*/\1/p')
	bad=$((${f:-0} + ${e:-0}))
	if [ $rc != 0 ] && [ $bad = 0 ]; then
		bad=1
		n=$((${n:-0} + 1))
	fi
	passed=$((passed + ${n:-0} - bad))
	failed=$((failed + bad))
	echo "$name: ${line:-no result} ($secs s)"
	if [ $bad != 0 ]; then
		[ $rc = 124 ] && echo "$name: ran longer than $limit s"
		tail -n 40 "$log"
	fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
