#!/bin/sh
# The house rules that a machine can check (docs/style.md): layers, sizes, leftovers,
# format, public headers, the example, man pages, scripts. Needs sh, awk and git.
cd "$(git rev-parse --show-toplevel)" || exit 1
bad=0
say() {
	echo "lint: $*"
	bad=1
}
sources=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh')

# ---- layers: who may include whom (quoted includes only)
allowed() {
	case $1 in
	libkvclient/*) echo 'libkvclient|^kv' ;;
	io/*) echo 'io' ;;
	kernels/*) echo 'kernels' ;;
	kvd/base/*) echo 'kvd/base|io' ;;
	kvd/mem/*) echo 'kvd/mem|kvd/base|io|kernels' ;;
	kvd/cache/*) echo 'kvd/cache|kvd/mem|kvd/base|io/base' ;;
	kvd/model/*) echo 'kvd/model|kernels|kvd/base|io/base' ;;
	kvd/serve/*) echo 'kvd/serve|kvd/cache|kvd/model|kvd/mem|kvd/base|kernels|io' ;;
	kvd/ipc/*) echo 'kvd/ipc|kvd/serve|kvd/base|libkvclient|io/base' ;;
	tools/kvbench.c | tools/bench*)
		echo 'tools|libkvclient|kernels|io|kvd/base|kvd/mem|kvd/cache' ;;
	tools/kvfsck.c) echo 'tools|io' ;;
	tools/kvsim.c | tools/sim*)
		echo 'tools|kvd/mem|kvd/base|io/base' ;;
	tools/*) echo 'tools|libkvclient' ;;
	*) echo '.' ;;
	esac
}
for f in $sources; do
	ok=$(allowed "$f" | sed 's/|/|^/g')
	for inc in $(sed -n 's/^#include "\(.*\)".*/\1/p' "$f"); do
		echo "$inc" | grep -Eq "^$ok" ||
			say "$f: includes $inc, which is not its layer"
	done
done

# ---- what can fail in io and kvd/mem has a fault point: io/sys.c makes the call
for f in $(git ls-files 'io/*.c' 'kvd/mem/*.c'); do
	[ "$f" = io/sys.c ] && continue
	grep -nE \
		'[^a-z_>.](syscall|openat|f?open|readlink|f?stat|mmap|madvise|fallocate|ftruncate|fcntl|ioctl|memfd_create|mlock2?|f?statfs|fsync|fdatasync|unlink|rename|p?read|p?write|eventfd|p?poll|epoll_[a-z0-9]+|pthread_create)\(' "$f" |
		grep -v '&one\|&bell\|&count\|EPOLL_CTL_DEL' | sed "s|^|$f:|" | grep . &&
		say "$f: a system call without a fault point (io/sys.h)"
done

# ---- sizes and leftovers
for f in $sources; do
	n=$(wc -l <"$f")
	[ "$n" -le 800 ] || say "$f: $n lines, at most 800"
	grep -nE '\b(TO''DO|FIX''ME|XX''X)\b' "$f" | sed "s|^|$f:|" | grep . &&
		say "$f: leftovers"
	case $f in
	kernels/*) max=120 ;;
	*) max=80 ;;
	esac
	# a function: from "{" in column 1 to "}" in column 1
	awk -v max=$max -v f="$f" '
		/^{/ { start = NR }
		/^}/ { if (start && NR - start > max) {
			print "lint: " f ":" start ": a function of " NR - start " lines"
			bad = 1 }
			start = 0 }
		length($0) > 132 { print "lint: " f ":" NR ": a line of " length($0); bad = 1 }
		END { exit bad }' "$f" || bad=1
done
n=$(wc -l <Makefile)
[ "$n" -le 200 ] || say "Makefile: $n lines, at most 200"

# ---- format
if command -v clang-format >/dev/null; then
	for f in $sources; do
		clang-format --dry-run -Werror "$f" >/dev/null 2>&1 ||
			say "$f: not formatted (make format)"
	done
else
	echo "lint: no clang-format: format not checked"
fi

# ---- public headers stand alone
for h in libkvclient/kv_abi.h libkvclient/kvclient.h; do
	cc -std=c11 -Wall -Wextra -Werror -fsyntax-only -x c "$h" ||
		say "$h: not C11"
	if command -v g++ >/dev/null; then
		g++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only -x c++ "$h" ||
			say "$h: not C++17"
	fi
done

# ---- README shows the example as it is
sed -n '/^```c$/,/^```$/p' README.md | sed '1d;$d' | cmp -s - docs/example.c ||
	say "README.md: the program differs from docs/example.c"

# ---- each metric is in docs/ops.md (`kvd_a_b_total`, or behind it `_c_total`), each key
# of the configuration in kvd.conf(5)
# shellcheck disable=SC2016 # backquotes of markdown
names=$(awk '/^\|/ { n = split($0, w, "`"); base = ""
	for (i = 2; i <= n; i += 2) {
		if (w[i] ~ /^kvd_[a-z0-9_]+$/) { base = w[i]; print base }
		else if (w[i] ~ /^_[a-z0-9_]+$/) {
			k = split(base, p, "_"); s = p[1]
			for (j = 2; j < k; j++) { s = s "_" p[j]; print s w[i] } } } }' docs/ops.md)
for m in $(git grep -hoE '"kvd_[a-z0-9_]+"' -- 'kvd/*.c' 'io/*.c' | tr -d '"' |
	grep -vx kvd_dummy | sort -u); do
	echo "$names" | grep -qx "$m" || say "docs/ops.md: no $m"
done
for k in $(sed -n 's/^\t{ "\([a-z_]*\)", set_.*/\1/p' kvd/base/conf_keys.c | sort -u); do
	grep -q "^\.BR $k " docs/man/kvd.conf.5 || say "kvd.conf(5): no $k"
done

# ---- man pages, scripts
if command -v man >/dev/null; then
	for m in docs/man/*.[1-8]; do
		[ -z "$(LC_ALL=C.UTF-8 man --warnings -E UTF-8 -l -Tutf8 -Z "$m" 2>&1 >/dev/null)" ] ||
			say "$m: warnings"
	done
fi
if command -v shellcheck >/dev/null; then
	shellcheck -S warning -s sh tools/*.sh tools/lint/*.sh .ci/run ||
		say "shellcheck"
fi
[ $bad = 0 ] && echo "lint: clean"
exit $bad
