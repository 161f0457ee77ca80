/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Receives a buffer from another process and reads its first word.
 *
 *   cc -o receive receive.c && ./receive SOCKET
 *
 * The other end is anything that sends as the Rust crate does, for example its
 * example `send`. The message is described in the crate's documentation
 * (barbuf::pass::Descriptor): 56 bytes, all numbers little-endian, the file
 * descriptor with the first of them. Needs no privilege.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/barbuf.h>

enum { HEADER = 56, MAX_FDS = 253 };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void refuse(const char *why)
{
	fprintf(stderr, "receive: %s\n", why);
	exit(1);
}

static uint64_t number(const uint8_t *at, int bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | at[bytes];
	return value;
}

static int dial(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		refuse("the path is too long");
	strcpy(address.sun_path, path);
	if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof(address)))
		die(path);
	return sock;
}

/*
 * Receives the header and returns the buffer's descriptor. A second one, an
 * eventfd for revocation, is put into @event; -1 if none has come.
 */
static int receive(int sock, uint8_t header[HEADER], int *event)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(MAX_FDS * sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = header, .iov_len = HEADER };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	int fds[MAX_FDS], count = 0, wanted;
	struct cmsghdr *c;

	if (recvmsg(sock, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL) != HEADER)
		refuse("no whole message came");
	for (c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(c), count * sizeof(int));
	}
	if (message.msg_flags & MSG_CTRUNC)
		refuse("file descriptors were lost");
	if (memcmp(header, "bBuf", 4) || number(header + 4, 2) != 1)
		refuse("the message is of another kind");
	wanted = number(header + 12, 4) & 2 ? 2 : 1;
	if (count != wanted)
		refuse("another number of file descriptors than it says");
	*event = wanted == 2 ? fds[1] : -1;
	return fds[0];
}

/* Maps all of a buffer where its largest pages fit. */
static void *map(int fd, size_t size, uint64_t phys_class, uint32_t page_shift)
{
	const size_t page = (size_t)1 << page_shift;
	char *room, *start;

	room = mmap(NULL, size + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
	if (room == MAP_FAILED)
		die("mmap");
	start = room + ((phys_class - (uintptr_t)room) & (page - 1));
	if (mmap(start, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		die("mmap");
	return start;
}

int main(int argc, char **argv)
{
	struct barbuf_query query = { .size = sizeof(query), .out_page_shift = BARBUF_PAGE_SHIFT_4K };
	const char *name = "not one of barbuf's";
	int fd, event, control;
	uint8_t header[HEADER];
	uint64_t offset;
	volatile uint64_t *first;
	off_t size;

	if (argc != 2) {
		fprintf(stderr, "usage: %s SOCKET\n", argv[0]);
		return 2;
	}
	fd = receive(dial(argv[1]), header, &event);
	size = lseek(fd, 0, SEEK_END);
	if (size < 0)
		die("lseek");
	offset = number(header + 16, 8);
	if (offset % 8 || offset >= (uint64_t)size)
		refuse("its range is not one of the buffer's");

	/* What it is, and how to map it. Without the module it is any mappable file. */
	query.fd = fd;
	control = open("/dev/barbuf/control", O_RDWR | O_CLOEXEC);
	if (control >= 0 && ioctl(control, BARBUF_QUERY, &query) == 0)
		name = (const char *)query.out_name;

	first = (volatile uint64_t *)((char *)map(fd, size, query.out_phys_class,
						  query.out_page_shift) + offset);
	printf("%s: %lld bytes, word at %llu: %016llx, %s eventfd\n", name, (long long)size,
	       (unsigned long long)offset, (unsigned long long)*first, event < 0 ? "no" : "an");
	return 0;
}
