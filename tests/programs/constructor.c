/* A library whose constructor mounts before main and, depending on the order, before the shim's own constructor:
 * CONSTRUCTOR_TYPE and CONSTRUCTOR_TARGET say what. gcc -shared -fPIC -o libconstructor.so constructor.c */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>

__attribute__((constructor)) static void early(void)
{
	const char *type = getenv("CONSTRUCTOR_TYPE"), *target = getenv("CONSTRUCTOR_TARGET");
	if (type && target) {
		int result = mount("early", target, type, 0, NULL);
		printf("constructor %d %d\n", result, result ? errno : 0);
	}
}
