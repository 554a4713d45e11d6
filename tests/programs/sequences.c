/* Random sequences of calls of the mount family, for a comparison of two runs: with a preload library and without it.
 *
 *   sequences [-o] FIRST COUNT [TYPE]
 *
 * Sequence N depends on N only. Each runs in a mount namespace of its own, on a ramfs at /stage, and prints one line
 * for each call: sequence, call, result, errno. The last line has the mounts and descriptors that are there at its end.
 *
 * With -o, each process uses its own descriptors only: none is kept over exec or comes from another program.
 *
 * With TYPE, nothing is printed but the calls after which another mount of this type is on the stage. What is on the
 * host's stage is unmounted after each sequence. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/magic.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SLOTS = 6, CALLS = 14, OPEN_TREE_ATTR = 467 };

struct mount_attr;
extern int fsopen(const char *, unsigned);
extern int fsmount(int, unsigned, unsigned);
extern int move_mount(int, const char *, int, const char *, unsigned);
extern int open_tree(int, const char *, unsigned);
extern int mount_setattr(int, const char *, unsigned, struct mount_attr *, size_t);

static uint64_t state;
static unsigned long sequence;
static int at, slot[SLOTS], quiet, no_memory, own;
static const char *watched = "";
static char text[1024];
static const char *stage[] = { "a", "b", "c", "a/sub", "f", "g", "la", "lf", "lost", "missing" };

/* System calls of the test itself, which no library sees. */
static long raw(long number, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return result;
}

#define RAW(name, a, b, c, d, e) raw(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

static void must(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "sequences: %s: %ld\n", what, result);
		_exit(2);
	}
}

static unsigned pick(unsigned below)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return (z ^ z >> 31) % below;
}

#define ONE_OF(...) ((const long[]){ __VA_ARGS__ }[pick(sizeof((long[]){ __VA_ARGS__ }) / sizeof(long))])

static void say(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	size_t used = strlen(text);
	vsnprintf(text + used, sizeof text - used, format, list);
	va_end(list);
}

/* A path of the stage: absolute, relative, with a descriptor, empty, or no path at all. */
static const char *path(char into[256])
{
	const char *name = stage[pick(sizeof stage / sizeof *stage)];
	switch (pick(12)) {
	case 0: snprintf(into, 256, "%s", name); break;
	case 1: snprintf(into, 256, "/stage/%s/", name); break;
	case 2: snprintf(into, 256, "/stage/a/../%s", name); break;
	case 3: snprintf(into, 256, "/proc/self/fd/%d", slot[pick(SLOTS)]); break;
	case 4: snprintf(into, 256, "/dev/fd/%d/%s", slot[pick(SLOTS)], pick(2) ? "sub" : ""); break;
	case 5: snprintf(into, 256, "%s", pick(2) ? "." : ""); break;
	case 6:
		if (!pick(4)) {
			say(" NULL");
			return NULL;
		}
		if (!pick(3)) {
			say(" BAD");
			return (char *)2;
		}
		/* fall through */
	default: snprintf(into, 256, "/stage/%s", name);
	}
	say(" '%s'", into);
	return into;
}

static const char *type(void)
{
	static const char *all[] = { "tmpfs", "ramfs", "tmpfs", "nosuchfs", NULL };
	const char *found = all[pick(pick(4) ? 3 : 5)];
	say(" %s", found ? found : "NULL");
	return found;
}

static int directory(void)
{
	int fd = pick(3) ? AT_FDCWD : slot[pick(SLOTS)];
	say(" %d", fd);
	return fd;
}

static void keep(int fd)
{
	int *into = &slot[pick(SLOTS)];
	if (fd < 0)
		return;
	if (*into >= 0 && *into != fd)
		close(*into);
	*into = fd;
}

static int fresh(const char *fs_type)
{
	int context = pick(2) ? fsopen(fs_type, 0) : syscall(SYS_fsopen, fs_type, 0);
	if (context < 0)
		return -1;
	RAW(fsconfig, context, 6, 0, 0, 0);
	int made = pick(2) ? fsmount(context, 0, 0) : syscall(SYS_fsmount, context, 0, 0);
	int saved = errno;
	close(context);
	errno = saved;
	return made;
}

static int send_to(int socket, int fd)
{
	char byte = 0, control[CMSG_SPACE(sizeof fd)] = { 0 };
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	return sendmsg(socket, &message, 0) < 0 ? -1 : 0;
}

static int received(int socket)
{
	char byte, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	int fd = -1;
	if (recvmsg(socket, &message, MSG_DONTWAIT) > 0 && CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

/* A descriptor that came over a socket: of this process, or of a mount that another one made. */
static int passed(void)
{
	int pair[2], fd = slot[pick(SLOTS)];
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		return -1;
	int other = pick(2) && !own;
	say(other ? " of another" : " %d", fd);
	const char *fs_type = other ? type() : NULL;
	if (other) {
		pid_t child = fork();
		if (!child) {
			fd = fresh(fs_type);
			_exit(fd < 0 || send_to(pair[1], fd));
		}
		if (child > 0)
			waitpid(child, NULL, 0);
	} else {
		send_to(pair[1], fd);
	}
	fd = received(pair[0]);
	close(pair[0]);
	close(pair[1]);
	return fd;
}

/* The rest of the sequence in a new program, which gets the descriptors. */
static int again(void)
{
	char words[SLOTS + 5][24], *argv[SLOTS + 6] = { "sequences", "-" };
	snprintf(words[0], 24, "%lu", sequence);
	snprintf(words[1], 24, "%d", at + 1);
	snprintf(words[2], 24, "%lu", (unsigned long)state);
	for (int n = 0; n < SLOTS; n++)
		snprintf(words[3 + n], 24, "%d", slot[n]);
	for (int n = 0; n < SLOTS + 3; n++)
		argv[2 + n] = words[n];
	setenv("SEQUENCES_TYPE", watched, 1);
	execv("/proc/self/exe", argv);
	return -1;
}

static int one(void)
{
	static const unsigned long flags[] = { 0, 0, 0, MS_RDONLY, MS_BIND, MS_BIND, MS_BIND | MS_REC, MS_MOVE, MS_REMOUNT,
		MS_REMOUNT | MS_BIND | MS_RDONLY, MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, MS_PRIVATE | MS_REC };
	char first[256], second[256];
	int by_number = pick(2), a, b;
	unsigned bits;
	const char *p, *q;
	switch (pick(18)) {
	case 0: case 1: {
		unsigned long wanted = flags[pick(sizeof flags / sizeof *flags)];
		say("mount %#lx", wanted);
		const char *fs_type = type();
		p = pick(2) ? path(first) : "none";
		q = path(second);
		return by_number ? syscall(SYS_mount, p, q, fs_type, wanted, NULL) : mount(p, q, fs_type, wanted, NULL);
	}
	case 2:
		say("umount");
		p = path(first);
		return by_number ? syscall(SYS_umount2, p, 0) : umount(p);
	case 3: case 4:
		bits = ONE_OF(0, MNT_DETACH, MNT_DETACH, MNT_EXPIRE, MNT_EXPIRE, UMOUNT_NOFOLLOW, MNT_FORCE, 0x100);
		say("umount2 %#x", bits);
		p = path(first);
		a = by_number ? syscall(SYS_umount2, p, bits) : umount2(p, bits);
		if (bits != MNT_EXPIRE)
			return a;
		say(" %d %d then", a, a < 0 ? errno : 0);
		return by_number ? umount2(p, bits) : syscall(SYS_umount2, p, bits);
	case 5:
		say("fsopen");
		p = type();
		bits = pick(4) ? pick(2) : 8;
		a = by_number ? syscall(SYS_fsopen, p, bits) : fsopen(p, bits);
		if (a >= 0 && pick(4))
			RAW(fsconfig, a, 6, 0, 0, 0);
		keep(a);
		return a;
	case 6:
		a = slot[pick(SLOTS)];
		say("fsmount %d", a);
		b = pick(2);
		keep(a = by_number ? syscall(SYS_fsmount, a, b, 0) : fsmount(a, b, 0));
		return a;
	case 7:
		say("fresh");
		keep(a = fresh(type()));
		return a;
	case 8: case 9: case 10:
		bits = ONE_OF(4, 4, 4, 4, 0x44, 0x44, 0x40, 0, 1, 0x10, 0x14, 0x204, 0x104, 0x1000);
		say("move_mount %#x", bits);
		a = pick(4) ? slot[pick(SLOTS)] : directory();
		say(" %d", a);
		p = bits & 4 && pick(8) ? "" : path(first);
		b = directory();
		q = bits & 0x40 && pick(3) ? "" : path(second);
		return by_number ? syscall(SYS_move_mount, a, p, b, q, bits) : move_mount(a, p, b, q, bits);
	case 11: case 12: {
		uint64_t attributes[4] = { ONE_OF(0, 1, 2, 4), 0, 0, 0 };
		bits = ONE_OF(1, 1, 1, 0x8001, 0x1001, 0x1001, 0x1000, 0, 0x101, 0x80001, 0x2);
		int with_attributes = !pick(3);
		say("open_tree%s %#x", with_attributes ? "_attr" : "", bits);
		a = directory();
		p = bits & 0x1000 && pick(4) ? "" : path(first);
		if (with_attributes)
			a = syscall(OPEN_TREE_ATTR, a, p, bits, attributes, sizeof attributes);
		else
			a = by_number ? syscall(SYS_open_tree, a, p, bits) : open_tree(a, p, bits);
		keep(a);
		return a;
	}
	case 13: {
		uint64_t attributes[4] = { ONE_OF(0, 1, 2, 8), ONE_OF(0, 0, 1), ONE_OF(0, 0, MS_SHARED, MS_PRIVATE), 0 };
		size_t size = pick(8) ? sizeof attributes : 8;
		bits = ONE_OF(0, 0, 0x1000, 0x1000, 0x8000, 0x100);
		say("mount_setattr %#x", bits);
		a = directory();
		p = bits & 0x1000 && pick(4) ? "" : path(first);
		void *at_all = pick(8) ? attributes : NULL;
		return by_number ? syscall(SYS_mount_setattr, a, p, bits, at_all, size)
				 : mount_setattr(a, p, bits, at_all, size);
	}
	case 14:
		a = slot[pick(SLOTS)];
		b = slot[pick(SLOTS)];
		switch (pick(4)) {
		case 0: say("dup2 %d %d", a, b); return a < 0 || b < 0 ? -1 : dup2(a, b);
		case 1: say("close %d", a); return close(a);
		case 2: say("dupfd"); keep(a = fcntl(a, F_DUPFD, 20 + pick(40))); return a;
		default: say("dup"); keep(a = dup(a)); return a;
		}
	case 15:
		say("passed");
		keep(a = passed());
		return a;
	case 16:
		if (pick(2)) {
			a = slot[pick(SLOTS)];
			say("fchdir %d", a);
			return fchdir(a);
		}
		say("chdir");
		p = path(first);
		return chdir(p);
	default:
		switch (pick(8)) {
		case 0: {
			struct rlimit none = { 24, 24 };
			say("files");
			return setrlimit(RLIMIT_NOFILE, &none);
		}
		case 1: {
			struct rlimit none = { 4096, 4096 };
			say("memory");
			no_memory = 1;
			return setrlimit(RLIMIT_AS, &none);
		}
		case 2: {
			struct sock_filter code[] = {
				BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
				BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 1),
				BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
				BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
			};
			struct sock_fprog program = { sizeof code / sizeof *code, code };
			say("no processes");
			return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
		}
		case 3:
			say("locked");
			return chmod("/stage/locked", 0700) || chdir("/stage/locked") || chmod("/stage/locked", 0);
		case 4:
			say("child");
			return 0;
		default:
			say("exec");
			return no_memory || own ? 0 : again();
		}
	}
}

/* Mount points of the stage with their types, options and propagation, without ids. */
static int table(char *into, size_t size, const char *only)
{
	static char buffer[1 << 16];
	int found = 0, file = RAW(open, "/proc/self/mountinfo", O_RDONLY, 0, 0, 0);
	size_t length = 0;
	for (long got; (got = RAW(read, file, buffer + length, sizeof buffer - 1 - length, 0, 0)) > 0;)
		length += got;
	RAW(close, file, 0, 0, 0, 0);
	buffer[length] = 0;
	*into = 0;
	for (char *rest = buffer, *line; (line = strsep(&rest, "\n")) && *line;) {
		char root[256], point[256], options[256], *dash = strstr(line, " - "), fs_type[64];
		if (!dash || sscanf(line, "%*d %*d %*s %255s %255s %255s", root, point, options) != 3
		    || sscanf(dash, " - %63s", fs_type) != 1 || strncmp(point, "/stage", 6))
			continue;
		found += !strcmp(fs_type, only);
		/* A bind of a file of /proc names a process. */
		if (!strcmp(fs_type, "proc"))
			strcpy(root, "?");
		size_t used = strlen(into);
		snprintf(into + used, size - used, " %s=%s[%s]%s%s%s", point, fs_type, root, options,
			 strstr(line, " shared:") ? ",shared" : "", strstr(line, " master:") ? ",slave" : "");
	}
	return found;
}

static void print(const char *line)
{
	RAW(write, 1, line, strlen(line), 0, 0);
}

/* Makes the stack large while there is memory. */
static void grow(void)
{
	volatile char stack[1 << 18];
	for (size_t n = 0; n < sizeof stack; n += 1024)
		stack[n] = 0;
}

static void play(void)
{
	grow();
	int before = 0;
	static char line[1 << 16], mounts[1 << 15];
	for (; at < CALLS; at++) {
		*text = 0;
		errno = 0;
		int result = one(), error = errno, child = !strcmp(text, "child");
		if (result >= 0 && error && !strncmp(text, "passed", 6))
			error = 0;
		snprintf(line, sizeof line, "%lu.%d %s: %d %d\n", sequence, at, text, result, error);
		if (!quiet)
			print(line);
		if (quiet) {
			int now = table(mounts, sizeof mounts, watched);
			if (now > before) {
				print("LEAK ");
				print(line);
			}
			before = now;
		}
		if (child) {
			pid_t pid = fork();
			if (pid > 0)
				waitpid(pid, NULL, 0);
			if (pid)
				return;
		}
	}
	if (quiet)
		return;
	table(mounts, sizeof mounts, "");
	char open_files[65] = { 0 };
	for (int fd = 0; fd < 64; fd++)
		open_files[fd] = RAW(fcntl, fd, F_GETFD, 0, 0, 0) >= 0 ? 'x' : '-';
	snprintf(line, sizeof line, "%lu end %s%s\n", sequence, open_files, mounts);
	print(line);
}

static void set_stage(void)
{
	must(RAW(unshare, CLONE_NEWNS, 0, 0, 0, 0), "unshare");
	must(RAW(mount, "none", "/", 0, MS_REC | MS_PRIVATE, 0), "private");
	must(RAW(mount, "stage", "/stage", "ramfs", 0, 0), "stage");
	if (pick(3) == 0)
		must(RAW(mount, "none", "/stage", 0, MS_SHARED, 0), "shared");
	must(chdir("/stage"), "chdir");
	must(mkdir("a", 0755) | mkdir("b", 0755) | mkdir("c", 0755) | mkdir("a/sub", 0755) | mkdir("locked", 0700), "mkdir");
	must(symlink("a", "la") | symlink("f", "lf") | symlink("nowhere", "lost"), "symlink");
	must(close(open("f", O_CREAT | O_WRONLY, 0644)) | close(open("g", O_CREAT | O_WRONLY, 0644)), "file");
	for (int n = 0; n < SLOTS; n++)
		slot[n] = n < 4 ? open(stage[n + (n == 3)], n & 1 ? O_PATH : O_RDONLY) : -1;
}

/* Unmounts everything that is on the host's stage, and the tmpfs that may be on the stage itself. */
static void clean_host(void)
{
	struct statfs at;
	int file = RAW(open, "/proc/1/ns/mnt", O_RDONLY, 0, 0, 0);
	must(RAW(setns, file, CLONE_NEWNS, 0, 0, 0), "setns");
	while (!RAW(statfs, "/stage", &at, 0, 0, 0) && at.f_type == TMPFS_MAGIC)
		must(RAW(umount2, "/stage", MNT_DETACH, 0, 0, 0), "umount");
	for (unsigned n = 0; n < sizeof stage / sizeof *stage; n++) {
		char name[256];
		snprintf(name, sizeof name, "/stage/%s", stage[n]);
		while (!RAW(umount2, name, MNT_DETACH, 0, 0, 0))
			;
	}
}

int main(int argc, char **argv)
{
	if (argc == 5 + SLOTS && !strcmp(argv[1], "-")) {
		sequence = strtoul(argv[2], NULL, 10);
		at = atoi(argv[3]);
		state = strtoul(argv[4], NULL, 10);
		for (int n = 0; n < SLOTS; n++)
			slot[n] = atoi(argv[5 + n]);
		watched = getenv("SEQUENCES_TYPE");
		quiet = *watched != 0;
		play();
		return 0;
	}
	if (argc > 1 && !strcmp(argv[1], "-o")) {
		own = 1;
		argc--;
		argv++;
	}
	if (argc < 3)
		return 2;
	watched = argc > 3 ? argv[3] : "";
	quiet = *watched != 0;
	unsigned long first = strtoul(argv[1], NULL, 10), end = first + strtoul(argv[2], NULL, 10);
	for (sequence = first; sequence < end; sequence++) {
		pid_t child = fork();
		if (!child) {
			state = sequence;
			set_stage();
			play();
			_exit(0);
		}
		int status;
		waitpid(child, &status, 0);
		if (status) {
			printf("%lu status %#x\n", sequence, status);
			fflush(stdout);
		}
		if (quiet && !(child = fork())) {
			clean_host();
			_exit(0);
		}
		waitpid(child, NULL, 0);
	}
	return 0;
}
