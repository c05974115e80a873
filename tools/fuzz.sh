#!/bin/sh
# Fuzz every target: fuzz.sh SECONDS. With libFuzzer and AddressSanitizer where $CLANG
# has them (build/fuzz), else with our own driver (build/). What libFuzzer found
# new is kept in build/fuzz/fuzz/NAME.new, an input that crashes in crash-*.
seconds=${1:-60}
CLANG=${CLANG:-clang}
MAKE=${MAKE:-make}
probe='#include <stdint.h>
#include <stddef.h>
int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n) { return n && d[0] & 0; }'
out=$(mktemp)
trap 'rm -f "$out"' EXIT
if echo "$probe" | "$CLANG" -x c - -fsanitize=fuzzer,address -o "$out" 2>/dev/null; then
	echo "fuzz: libFuzzer of $("$CLANG" --version | head -n 1)"
	"$MAKE" --no-print-directory SAN=fuzz CC="$CLANG" fuzz-built || exit 1
	for t in tests/fuzz/fuzz_*.c; do
		name=$(basename "$t" .c)
		name=${name#fuzz_}
		new=build/fuzz/fuzz/$name.new
		mkdir -p "$new"
		echo "fuzz: $name, $seconds s"
		"build/fuzz/fuzz/$name" -max_total_time="$seconds" -timeout=20 \
			-max_len=65536 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix="build/fuzz/fuzz/$name-" \
			"$new" "tests/fuzz/corpus/$name" || exit 1
	done
else
	echo "fuzz: no libFuzzer here: our own driver"
	"$MAKE" --no-print-directory fuzz-built || exit 1
	for t in tests/fuzz/fuzz_*.c; do
		name=$(basename "$t" .c)
		name=${name#fuzz_}
		"build/fuzz/$name" "$seconds" "tests/fuzz/corpus/$name" || exit 1
	done
fi
