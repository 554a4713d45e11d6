/* Makes calls of the mount family as asked and prints what came back: "mount 0 0" is result 0, errno 0.
 *
 *   call [-c CWD] [-r ROOT] [-t THREADS] [-m MIB] [-e] [-s] CALL ARGUMENT... [, CALL ARGUMENT...]...
 *
 * -e clears the environment first, -s makes the calls through syscall(2). The word NULL is a null pointer, BAD an
 * address where nothing is, ALT the descriptor of the tree made last. Calls:
 *   mount SOURCE TARGET TYPE FLAGS DATA · umount TARGET · umount2 TARGET FLAGS
 *   new TYPE SOURCE TARGET          fsopen, fsconfig, fsmount, move_mount
 *   bind SOURCE TARGET              open_tree with a copy, move_mount
 *   move SOURCE TARGET              move_mount of a path
 *   tree PATH FLAGS · attr PATH SET CLEAR PROPAGATION      "" for PATH: the tree made last
 *   open PATH                       a descriptor, printed, for /proc/self/fd/N
 * At the end: "state same", or what is not as it was before: cwd, root, namespace, descriptors, signal mask. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Weak: older libraries and musl do not have them. */
extern int fsopen(const char *, unsigned) __attribute__((weak));
extern int fsmount(int, unsigned, unsigned) __attribute__((weak));
extern int move_mount(int, const char *, int, const char *, unsigned) __attribute__((weak));
extern int open_tree(int, const char *, unsigned) __attribute__((weak));

struct mount_attr;
extern int mount_setattr(int, const char *, unsigned, struct mount_attr *, size_t) __attribute__((weak));

static int raw, tree = -1;

static char *text(char *word)
{
	return !strcmp(word, "NULL") ? NULL : !strcmp(word, "BAD") ? (char *)8 : word;
}

static unsigned long number(const char *word)
{
	return strtoul(word, NULL, 0);
}

static int call_move(int from, const char *path, const char *target, unsigned flags)
{
	if (raw || !move_mount)
		return syscall(SYS_move_mount, from, path, AT_FDCWD, target, flags);
	return move_mount(from, path, AT_FDCWD, target, flags);
}

static int call_tree(const char *path, unsigned flags)
{
	return raw || !open_tree ? syscall(SYS_open_tree, AT_FDCWD, path, flags) : open_tree(AT_FDCWD, path, flags);
}

static int call_new(char *type, char *source, char *target)
{
	int context = raw || !fsopen ? syscall(SYS_fsopen, type, 0) : fsopen(type, 0);
	if (context < 0)
		return -1;
	syscall(SYS_fsconfig, context, 1, "source", source, 0);
	int result = syscall(SYS_fsconfig, context, 6, NULL, NULL, 0);
	if (!result)
		result = raw || !fsmount ? syscall(SYS_fsmount, context, 1, 0) : fsmount(context, 1, 0);
	int saved = errno;
	close(context);
	errno = saved;
	if (result < 0)
		return -1;
	tree = result;
	return call_move(tree, "", target, 4);
}

static int call_attr(char **a)
{
	uint64_t attributes[4] = { number(a[1]), number(a[2]), number(a[3]), 0 };
	int dir = *a[0] ? AT_FDCWD : tree, flags = *a[0] ? 0 : AT_EMPTY_PATH;
	if (raw || !mount_setattr)
		return syscall(SYS_mount_setattr, dir, a[0], flags, attributes, sizeof attributes);
	return mount_setattr(dir, a[0], flags, (struct mount_attr *)attributes, sizeof attributes);
}

static int one(char **a)
{
	const char *name = a[0];
	if (!strcmp(name, "mount")) {
		if (raw)
			return syscall(SYS_mount, text(a[1]), text(a[2]), text(a[3]), number(a[4]), text(a[5]));
		return mount(text(a[1]), text(a[2]), text(a[3]), number(a[4]), text(a[5]));
	}
	if (!strcmp(name, "umount"))
		return raw ? syscall(SYS_umount2, text(a[1]), 0) : umount(text(a[1]));
	if (!strcmp(name, "umount2"))
		return raw ? syscall(SYS_umount2, text(a[1]), (int)number(a[2])) : umount2(text(a[1]), number(a[2]));
	if (!strcmp(name, "new"))
		return call_new(a[1], a[2], a[3]);
	if (!strcmp(name, "bind"))
		return (tree = call_tree(a[1], 1)) < 0 ? -1 : call_move(tree, "", a[2], 4);
	if (!strcmp(name, "move"))
		return call_move(AT_FDCWD, a[1], a[2], 0);
	if (!strcmp(name, "tree"))
		return (tree = call_tree(a[1], number(a[2]))) < 0 ? -1 : 0;
	if (!strcmp(name, "attr"))
		return call_attr(a + 1);
	if (!strcmp(name, "open"))
		return open(a[1], O_PATH);
	fprintf(stderr, "call: unknown: %s\n", name);
	exit(2);
}

struct state { char cwd[4096], fds[1024]; struct stat root, here; uint64_t mounts; sigset_t signals; };

static void look(struct state *s)
{
	memset(s, 0, sizeof *s);
	if (!getcwd(s->cwd, sizeof s->cwd))
		strcpy(s->cwd, "?");
	stat("/", &s->root);
	stat(".", &s->here);
	uint64_t statx[32] = { 0 };
	syscall(SYS_statx, AT_FDCWD, "/", 0, 0x1000, statx);
	s->mounts = statx[18];
	for (int fd = 0; fd < (int)sizeof s->fds; fd++)
		s->fds[fd] = fcntl(fd, F_GETFD) >= 0;
	sigprocmask(SIG_BLOCK, NULL, &s->signals);
}

static void *idle(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	const char *cwd = NULL, *root = NULL;
	long threads = 0, mib = 0;
	int option;
	while ((option = getopt(argc, argv, "+c:r:t:m:es")) != -1) {
		switch (option) {
		case 'c': cwd = optarg; break;
		case 'r': root = optarg; break;
		case 't': threads = atol(optarg); break;
		case 'm': mib = atol(optarg); break;
		case 'e': clearenv(); break;
		case 's': raw = 1; break;
		default: return 2;
		}
	}
	if ((root && (chroot(root) || chdir("/"))) || (cwd && chdir(cwd))) {
		perror("call");
		return 2;
	}
	if (mib) {
		char *memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (memory == MAP_FAILED) {
			perror("call: mmap");
			return 2;
		}
	}
	for (pthread_t thread; threads-- > 0;)
		pthread_create(&thread, NULL, idle, NULL);
	static struct state before, after;
	look(&before);
	int failed = 0;
	for (char **a = argv + optind; *a;) {
		char **end = a;
		while (*end && strcmp(*end, ","))
			end++;
		int more = *end != NULL;
		*end = NULL;
		errno = 0;
		int result = one(a);
		printf("%s %d %d\n", a[0], result, result < 0 ? errno : 0);
		if (result >= 0 && errno)
			printf("errno changed: %d\n", errno);
		if (!strcmp(a[0], "open") && result >= 0)
			look(&before);
		failed |= result < 0;
		a = end + more;
	}
	if (tree >= 0)
		close(tree);
	look(&after);
	int same = 1;
#define SAME(part) if (memcmp(&before.part, &after.part, sizeof before.part)) { same = 0; puts("state changed: " #part); }
	SAME(cwd) SAME(root.st_ino) SAME(root.st_dev) SAME(here.st_ino) SAME(mounts) SAME(fds) SAME(signals)
	if (same)
		puts("state same");
	return failed;
}
