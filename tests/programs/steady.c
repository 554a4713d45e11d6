/* Reads and writes below a directory until SIGTERM, in rounds with a short pause: steady DIRECTORY STATE. STATE tells
 * at each moment how far it is, on one line; STATE.errors gets a line for each error, and for each byte read that was not written. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* Without the pause, five such programs keep an emulated machine from everything else. */
enum { BLOCK = 4096, BLOCKS = 64, PAUSE_US = 400000 };

static volatile sig_atomic_t stop;
static unsigned long rounds, errors;
static long longest;
static int complaints;
static char block[BLOCK], back[BLOCK], name[4096], other[4096];

static void end(int signal)
{
	(void)signal;
	stop = 1;
}

static long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static void complain(const char *what, const char *why)
{
	time_t clock = time(NULL);
	errors++;
	dprintf(complaints, "round %lu, %.8s: %s: %s\n", rounds, ctime(&clock) + 11, what, why);
	usleep(10000);
}

/* The result of one call, whose time counts. */
#define CALL(what) ({ \
	long began = now(), result = (long)(what); \
	long took = now() - began; \
	if (took > longest) \
		longest = took; \
	if (result < 0) \
		complain(#what, strerror(errno)); \
	result; })

static void compare(const char *what, long length)
{
	if (length >= 0 && (length != BLOCK || memcmp(block, back, BLOCK)))
		complain(what, "other bytes than were written");
}

/* A file that stays open all the time. */
static void kept(int file)
{
	off_t at = rounds % BLOCKS * BLOCK;
	if (CALL(pwrite(file, block, BLOCK, at)) == BLOCK)
		compare("kept", CALL(pread(file, back, BLOCK, at)));
	if (rounds % BLOCKS == 0)
		CALL(fsync(file));
}

/* A file that comes and goes. */
static void fresh(void)
{
	int file = CALL(open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644));
	if (file < 0)
		return;
	long length = CALL(write(file, block, BLOCK));
	CALL(close(file));
	file = CALL(open(name, O_RDONLY));
	if (file >= 0 && length == BLOCK)
		compare("fresh", CALL(read(file, back, BLOCK)));
	if (file >= 0)
		CALL(close(file));
	CALL(rename(name, other));
	CALL(unlink(other));
}

/* What others do who only look, and which mount they find there. */
static void look(const char *directory)
{
	static __u64 mount;
	struct statvfs space;
	struct statx data;
	CALL(statvfs(directory, &space));
	if (CALL(statx(AT_FDCWD, directory, 0, STATX_BASIC_STATS | STATX_MNT_ID, &data)) == 0) {
		if (mount && mount != data.stx_mnt_id)
			complain("statx", "another mount");
		mount = data.stx_mnt_id;
	}
	DIR *list = opendir(directory);
	if (!list) {
		complain("opendir", strerror(errno));
		return;
	}
	errno = 0;
	while (readdir(list))
		;
	if (errno)
		complain("readdir", strerror(errno));
	closedir(list);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	struct sigaction action = { .sa_handler = end, .sa_flags = SA_RESTART };
	sigaction(SIGTERM, &action, NULL);
	int state = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
	snprintf(name, sizeof name, "%s.errors", argv[2]);
	complaints = open(name, O_WRONLY | O_CREAT | O_APPEND, 0644);
	snprintf(name, sizeof name, "%s/kept", argv[1]);
	int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
	if (state < 0 || complaints < 0 || file < 0)
		return perror("steady"), 1;
	snprintf(name, sizeof name, "%s/fresh", argv[1]);
	snprintf(other, sizeof other, "%s/renamed", argv[1]);
	for (; !stop; rounds++) {
		memset(block, 'a' + rounds % 26, BLOCK);
		snprintf(block, BLOCK, "%lu", rounds);
		kept(file);
		fresh();
		look(argv[1]);
		char line[100];
		int length = snprintf(line, sizeof line, "%10lu %10lu %10ld\n", rounds, errors, longest);
		if (pwrite(state, line, length, 0) != length)
			return perror("steady"), 1;
		usleep(PAUSE_US);
	}
	CALL(close(file));
	return errors != 0;
}
