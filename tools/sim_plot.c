/*
 * sim_plot.c - hit rates over cache sizes by gnuplot(1); see sim.h
 */
#include "tools/sim.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* gnuplot reading what is written to the stream. */
static FILE *open_gnuplot(pid_t *pid)
{
	int fd[2];

	if (pipe2(fd, O_CLOEXEC))
		return NULL;
	*pid = fork();
	if (!*pid) {
		dup2(fd[0], STDIN_FILENO);
		execlp("gnuplot", "gnuplot", "-", (char *)NULL);
		_exit(127);
	}
	close(fd[0]);
	if (*pid < 0) {
		close(fd[1]);
		return NULL;
	}
	return fdopen(fd[1], "w");
}

/* 'text' for gnuplot: a quote is doubled; what is no text is left out. */
static void quoted(FILE *f, const char *s)
{
	fputc('\'', f);
	for (; *s; s++) {
		if ((unsigned char)*s < ' ')
			continue;
		if (*s == '\'')
			fputc('\'', f);
		fputc(*s, f);
	}
	fputc('\'', f);
}

static void write_plot(FILE *f, const struct sim_plot *p, int svg)
{
	fprintf(f, "set terminal %s size 800,500\nset output ",
		svg ? "svg" : "png");
	quoted(f, p->path);
	fputs("\nset title ", f);
	quoted(f, p->title);
	fprintf(f,
		" noenhanced\nset xlabel 'blocks'\nset ylabel 'hit rate'\n"
		"set logscale x\nset grid\nset key left top noenhanced\n"
		"set yrange [0:*]\nset style data linespoints\n"
		"plot %.6f title 'no limit' with lines dashtype 2",
		p->ceiling);
	for (uint32_t i = 0; i < p->n_names; i++) {
		fputs(", '-' title ", f);
		quoted(f, p->names[i]);
	}
	fputc('\n', f);
	for (uint32_t i = 0; i < p->n_names; i++) {
		for (uint32_t j = 0; j < p->n_sizes; j++)
			fprintf(f, "%" PRIu32 " %.6f\n", p->sizes[j],
				p->rates[i * p->n_sizes + j]);
		fputs("e\n", f);
	}
}

int sim_plot(const struct sim_plot *p)
{
	const size_t len = strlen(p->path);
	const int svg = len > 4 && !strcmp(p->path + len - 4, ".svg");
	int status = 0;
	pid_t pid;
	FILE *f;

	if (!svg && (len < 5 || strcmp(p->path + len - 4, ".png"))) {
		fprintf(stderr, "kvsim: --plot %s: .svg or .png\n", p->path);
		return -EINVAL;
	}
	f = open_gnuplot(&pid);
	if (!f)
		return -errno;
	write_plot(f, p, svg);
	fclose(f);
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -EIO;
	if (WEXITSTATUS(status) == 127) {
		fprintf(stderr,
			"kvsim: --plot: gnuplot is not installed; no plot\n");
		return -ENOENT;
	}
	return WEXITSTATUS(status) ? -EIO : 0;
}
