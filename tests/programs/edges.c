/* Single calls at the edges of what a preload library may redirect. Every case runs in a mount namespace of its own, in
 * which /stage is a ramfs with the names that the host's /stage has, and prints its name and "ok" or what was wrong.
 *
 *   edges GROUP
 *
 * The settings redirect tmpfs, fuse and ext4 in the group "types", bind mounts in the group "binds", and the target
 * /stage/c in the group "targets". In the group "renamed", a library below the preload library renames the target
 * before the mount (-DLIBRARY). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef LIBRARY
int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
	if (!rename("/stage/b", "/stage/renamed"))
		mkdir("/stage/b", 0755);
	return syscall(SYS_mount, source, target, type, flags, data);
}
#else

extern int fsopen(const char *, unsigned);
extern int fsmount(int, unsigned, unsigned);
extern int move_mount(int, const char *, int, const char *, unsigned);
extern int open_tree(int, const char *, unsigned);

static const char *group, *name;
static int host, failures;

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

/* Runs a statement in the host's mount namespace. */
#define ON_HOST(statement) do { \
	if (!fork()) { \
		RAW(setns, host, CLONE_NEWNS, 0, 0, 0); \
		statement; \
		_exit(0); \
	} \
	wait(NULL); \
} while (0)

/* Number of mounts of a type on a path, here or on the host. */
static int count(const char *process, const char *path, const char *type)
{
	static char buffer[1 << 16];
	char file[64];
	snprintf(file, sizeof file, "/proc/%s/mountinfo", process);
	int found = 0, fd = open(file, O_RDONLY);
	size_t length = 0;
	for (long got; (got = read(fd, buffer + length, sizeof buffer - 1 - length)) > 0;)
		length += got;
	close(fd);
	buffer[length] = 0;
	for (char *rest = buffer, *line; (line = strsep(&rest, "\n")) && *line;) {
		char point[256], fs_type[64], *dash = strstr(line, " - ");
		if (dash && sscanf(line, "%*d %*d %*s %*s %255s", point) == 1 && sscanf(dash, " - %63s", fs_type) == 1)
			found += !strcmp(point, path) && !strcmp(fs_type, type);
	}
	return found;
}

#define HERE(path) count("self", path, "tmpfs")
#define THERE(path) count("1", path, "tmpfs")

/* Checks a result or an errno, and where the mounts are. */
static void check(const char *what, long got, long wanted)
{
	if (got == wanted)
		return;
	printf("%s: %s is %ld, not %ld\n", name, what, got, wanted);
	failures++;
}

#define CALL(expression, wanted) do { \
	errno = 0; \
	long result_ = (expression); \
	check(#expression, result_ < 0 ? -errno : result_, wanted); \
} while (0)
#define IS(expression, wanted) check(#expression, expression, wanted)

static void begin(int slave)
{
	RAW(unshare, CLONE_NEWNS, 0, 0, 0, 0);
	RAW(mount, "none", "/", 0, MS_REC | (slave ? MS_SLAVE : MS_PRIVATE), 0);
	if (slave)
		return;
	RAW(mount, "stage", "/stage", "ramfs", 0, 0);
	mkdir("/stage/a", 0755), mkdir("/stage/b", 0755), mkdir("/stage/c", 0755), mkdir("/stage/user", 0755);
	mkdir("/stage/user/link", 0755);
	symlink("a", "/stage/la");
	close(open("/stage/f", O_CREAT | O_WRONLY, 0644));
	RAW(mknod, "/stage/disk", S_IFBLK | 0600, makedev(7, 200), 0, 0);
	RAW(chdir, "/stage", 0, 0, 0, 0);
}

static int fresh(const char *type)
{
	int context = fsopen(type, 0);
	syscall(SYS_fsconfig, context, 6, NULL, NULL, 0);
	int made = fsmount(context, 0, 0);
	close(context);
	return made;
}

static void unreadable_arguments(void)
{
	CALL(mount("src", "/stage/a", "tmpfs", 0, NULL), 0);
	CALL(move_mount(AT_FDCWD, (char *)2, AT_FDCWD, "/stage/a", 4), -EFAULT);
	CALL(move_mount(AT_FDCWD, "/stage/b", AT_FDCWD, (char *)2, 0), -EFAULT);
	CALL(mount("src", "/stage/a", (char *)2, 0, NULL), -EFAULT);
	CALL(syscall(SYS_mount_setattr, AT_FDCWD, "/stage/a", 0, (void *)2, 32), -EFAULT);
	IS(THERE("/stage/a"), 1);
}

static void a_link_that_is_not_followed(void)
{
	CALL(mount("src", "/stage/a", "tmpfs", 0, NULL), 0);
	CALL(umount2("/stage/la", UMOUNT_NOFOLLOW), -EINVAL);
	IS(THERE("/stage/a"), 1);
	/* A directory here, on the host a link to the mount. */
	ON_HOST((rmdir("/stage/c"), symlink("a", "/stage/c")));
	CALL(umount("/stage/c"), -EINVAL);
	CALL(umount2("/stage/c", MNT_DETACH), -EINVAL);
	ON_HOST((unlink("/stage/c"), mkdir("/stage/c", 0755)));
	IS(THERE("/stage/a"), 1);
	CALL(umount2("/stage/la", 0), 0);
	IS(THERE("/stage/a"), 0);
}

static void an_expiring_mount(void)
{
	CALL(mount("src", "/stage/b", "ramfs", 0, NULL), 0);
	CALL(umount2("/stage/b", MNT_EXPIRE), -EAGAIN);
	CALL(umount2("/stage/b", MNT_EXPIRE), 0);
	CALL(umount2("/stage/b", MNT_EXPIRE), -EINVAL);
}

static void a_mount_by_its_descriptor(void)
{
	char path[32];
	int fd = fresh("tmpfs");
	CALL(move_mount(fd, "", AT_FDCWD, "/stage/a", 4), 0);
	IS(THERE("/stage/a"), 1);
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	CALL(umount2(path, MNT_DETACH), 0);
	IS(THERE("/stage/a"), 0);
	close(fd);
	/* The same onto a descriptor, as libfuse does. */
	int target = open("/stage/a", O_PATH);
	fd = fresh("tmpfs");
	CALL(move_mount(fd, "", target, "", 0x44), 0);
	IS(THERE("/stage/a"), 1);
	IS(HERE("/stage/a"), 0);
}

static void a_file_by_its_descriptor(void)
{
	char path[32], data[64];
	int target = open("/stage/f", O_PATH), fuse = open("/dev/fuse", O_RDWR);
	snprintf(path, sizeof path, "/proc/self/fd/%d", target);
	snprintf(data, sizeof data, "fd=%d,rootmode=100000,user_id=0,group_id=0", fuse);
	CALL(mount("null", path, "fuse", 0, data), 0);
	IS(count("1", "/stage/f", "fuse"), 1);
	IS(count("self", "/stage/f", "fuse"), 0);
}

static void copies_of_a_new_mount(void)
{
	char path[32];
	int fd = fresh("tmpfs");
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	int copy = open_tree(fd, "", 0x1001);
	if (copy >= 0) {
		CALL(move_mount(copy, "", AT_FDCWD, "/stage/b", 4), 0);
		IS(THERE("/stage/b"), 1);
	}
	IS(mount(path, "/stage/c", NULL, MS_BIND, NULL), -1);
	IS(mount(path, "/stage/c", NULL, MS_MOVE, NULL), -1);
	IS(HERE("/stage/b") + HERE("/stage/c"), 0);
	/* A file that stands for a namespace is on no attached mount, either. */
	CALL(mount("/proc/self/ns/net", "/stage/f", NULL, MS_BIND, NULL), 0);
}

static void a_user(void)
{
	if (syscall(SYS_setresuid, 65534, 0, 0))
		return;
	CALL(mount("src", "/stage/b", "tmpfs", 0, NULL), 0);
	IS(THERE("/stage/b"), 0);
	IS(HERE("/stage/b"), 1);
}

static void links_of_the_host(void)
{
	/* A directory here, on the host a link that its user made. */
	CALL(mount("src", "/stage/user/link", "tmpfs", 0, NULL), -ELOOP);
	CALL(mount("src", "/stage/user/link/sub", "tmpfs", 0, NULL), -ELOOP);
	IS(THERE("/stage/a"), 0);
	/* On the host a link in the root directory. */
	RAW(mount, "top", "/top", "ramfs", 0, 0);
	mkdir("/top/a", 0755);
	CALL(mount("src", "/top/a", "tmpfs", 0, NULL), 0);
	IS(THERE("/stage/a"), 1);
	CALL(umount("/top/a"), 0);
	IS(THERE("/stage/a"), 0);
}

static void a_copy_by_propagation(void)
{
	CALL(mount("src", "/stage/a", "tmpfs", 0, NULL), 0);
	IS(THERE("/stage/a"), 1);
	IS(HERE("/stage/a"), 1);
	CALL(umount("/stage/a"), 0);
	IS(THERE("/stage/a"), 0);
	IS(HERE("/stage/a"), 0);
	/* A mount of this namespace alone. */
	CALL(mount("src", "/stage/b", "ramfs", 0, NULL), 0);
	CALL(umount("/stage/b"), 0);
}

static void a_device_by_a_relative_path(void)
{
	long wanted = RAW(mount, "disk", "/stage/b", "ext4", 0, 0);
	CALL(mount("disk", "/stage/b", "ext4", 0, NULL), wanted);
}

static void an_empty_source(void)
{
	long wanted = RAW(mount, "", "/stage/b", 0, MS_BIND, 0);
	CALL(mount("", "/stage/b", NULL, MS_BIND, NULL), wanted);
	CALL(mount(NULL, "/stage/b", NULL, MS_BIND, NULL), RAW(mount, 0, "/stage/b", 0, MS_BIND, 0));
}

static void the_lowest_descriptor(void)
{
	int low = dup(0);
	close(low);
	CALL(open_tree(AT_FDCWD, "/stage/a", 1 | O_CLOEXEC), low);
	CALL(fcntl(low, F_GETFD), FD_CLOEXEC);
}

static void a_listed_target_that_is_a_link(void)
{
	CALL(mount("src", "/stage/a", "tmpfs", 0, NULL), 0);
	ON_HOST((rmdir("/stage/c"), symlink("a", "/stage/c")));
	CALL(umount("/stage/c"), -EINVAL);
	CALL(umount2("/stage/c", MNT_DETACH), -EINVAL);
	CALL(mount("src", "/stage/c", "ramfs", 0, NULL), -ELOOP);
	IS(THERE("/stage/a"), 1);
	ON_HOST((unlink("/stage/c"), mkdir("/stage/c", 0755)));
}

static void a_renamed_target(void)
{
	CALL(mount("src", "/stage/b", "tmpfs", 0, NULL), -ESTALE);
	IS(THERE("/stage/b") + THERE("/stage/renamed"), 0);
	ON_HOST((rmdir("/stage/b"), rename("/stage/renamed", "/stage/b")));
}

static void run(const char *of, const char *called, void (*body)(void), int slave)
{
	if (strcmp(of, group))
		return;
	name = called;
	fflush(stdout);
	if (!fork()) {
		begin(slave);
		body();
		if (!failures)
			printf("%s: ok\n", name);
		fflush(stdout);
		_exit(0);
	}
	wait(NULL);
	static const char *places[] = { "/stage/a", "/stage/b", "/stage/c", "/stage/f", "/stage/renamed" };
	for (unsigned n = 0; n < sizeof places / sizeof *places; n++)
		ON_HOST(while (!RAW(umount2, places[n], MNT_DETACH, 0, 0, 0)));
}

#define RUN(group, name, slave) run(group, #name, name, slave)

int main(int argc, char **argv)
{
	group = argc > 1 ? argv[1] : "";
	host = RAW(open, "/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC, 0, 0, 0);
	RUN("types", unreadable_arguments, 0);
	RUN("types", a_link_that_is_not_followed, 0);
	RUN("types", an_expiring_mount, 0);
	RUN("types", a_mount_by_its_descriptor, 0);
	RUN("types", a_file_by_its_descriptor, 0);
	RUN("types", copies_of_a_new_mount, 0);
	RUN("types", a_user, 0);
	RUN("types", links_of_the_host, 0);
	RUN("types", a_copy_by_propagation, 1);
	RUN("types", a_device_by_a_relative_path, 0);
	RUN("binds", an_empty_source, 0);
	RUN("binds", the_lowest_descriptor, 0);
	RUN("targets", a_listed_target_that_is_a_link, 0);
	RUN("renamed", a_renamed_target, 0);
	return 0;
}
#endif
