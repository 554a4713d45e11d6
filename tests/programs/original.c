/* The defects of the shim of 2015, written anew: a test of a defect has to fail against a shim that has it.
 * A preloadable library:
 *
 *   gcc -shared -fPIC -o liboriginal.so original.c -ldl
 *
 * One hook on mount(2), one type. Everything below that looks like a mistake is one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*mount_function)(const char *, const char *, const char *, unsigned long, const void *);

int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
	mount_function real = (mount_function)dlsym(RTLD_NEXT, "mount");
	if (!real)
		return -ENOENT;                                 /* a return value that is not -1, and no errno */
	if (strcmp(type, "fuse.glusterfs") == 0) {              /* crashes for a null type */
		const char *root = getenv("sysimage");          /* the only setting: gone under nsenter */
		char path[512];
		snprintf(path, sizeof path, "%s/proc/1/ns/mnt", root ? root : "");
		int fd = open(path, O_RDONLY);                  /* never closed, inherited by the daemon; after the first */
		if (fd < 0)                                     /* mount it is looked for in the host's namespace */
			return -ENOENT;
		if (setns(fd, CLONE_NEWNS) != 0)                /* EINVAL with threads; may be the own namespace */
			perror("setns");                        /* and then it mounts here all the same */
		/* The namespace, the root and the directory stay changed; "." now means the host's "/". */
	}
	return real(source, target, type, flags, data);
}
/* No umount, no umount2, no fsopen. */
