#!/bin/sh
# Lines of `kvbench rag` on standard input: exact match over the share of tokens that
# each selector computes again, as an SVG on standard output.
exec awk '
function x(p) { return 60 + p * 5.2 }
function y(v) { return 330 - (v - lo) / (hi - lo) * 290 }
function flat(v, what, dash) {
	printf "<line x1=\"60\" x2=\"580\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#555\" stroke-dasharray=\"%s\"/>\n", y(v), y(v), dash
	printf "<text x=\"575\" y=\"%.1f\" text-anchor=\"end\">%s %.1f</text>\n", y(v) - 4, what, v
}
$1 ~ /^rag\..*\.exact_match$/ {
	name = $1
	sub(/^rag\./, "", name)
	sub(/\.exact_match$/, "", name)
	if (name == "full") full = $2
	else if (name == "chunks") plain = $2
	else if (split(name, part, "@") == 2) {
		if (!(part[1] in n)) order[++n_sel] = part[1]
		i = ++n[part[1]]
		px[part[1], i] = part[2]
		pv[part[1], i] = $2
	}
}
END {
	lo = 60; hi = 85
	split("#c33 #36c #393 #939 #b70", colour, " ")
	print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" height=\"380\" font-family=\"sans-serif\" font-size=\"12\">"
	print "<rect width=\"640\" height=\"380\" fill=\"#fff\"/>"
	for (v = lo; v <= hi; v += 5)
		printf "<text x=\"50\" y=\"%.1f\" text-anchor=\"end\">%d</text><line x1=\"60\" x2=\"580\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", y(v) + 4, v, y(v), y(v)
	for (p = 0; p <= 100; p += 20)
		printf "<text x=\"%.1f\" y=\"348\" text-anchor=\"middle\">%d</text>\n", x(p), p
	print "<text x=\"320\" y=\"368\" text-anchor=\"middle\">% of the chunk tokens computed again</text>"
	print "<text x=\"60\" y=\"24\">exact match, %</text>"
	if (full) flat(full, "full prefill", "6 3")
	if (plain) flat(plain, "plain reuse", "2 3")
	for (s = 1; s <= n_sel; s++) {
		name = order[s]
		points = ""
		for (i = 1; i <= n[name]; i++)
			points = points sprintf("%.1f,%.1f ", x(px[name, i]), y(pv[name, i]))
		printf "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", points, colour[s]
		printf "<text x=\"%.1f\" y=\"%.1f\" fill=\"%s\">%s</text>\n", 600 - 0, 60 + 16 * s, colour[s], name
	}
	print "</svg>"
}'
