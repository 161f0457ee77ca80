// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Receives a buffer from another process and reads its first word; what owns something gives it
// back by itself.
//
//   c++ -std=c++17 -o receive receive.cpp && ./receive SOCKET
//
// See receive.c for what it talks to.

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/barbuf.h>

namespace {

[[noreturn]] void fail(const std::string &what)
{
	throw std::system_error(errno, std::generic_category(), what);
}

/// An open file descriptor.
class Fd {
public:
	explicit Fd(int fd = -1) : fd_(fd) {}
	Fd(Fd &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
	Fd &operator=(Fd &&other) noexcept
	{
		std::swap(fd_, other.fd_);
		return *this;
	}
	~Fd()
	{
		if (fd_ >= 0)
			close(fd_);
	}
	int get() const { return fd_; }
	explicit operator bool() const { return fd_ >= 0; }

private:
	int fd_;
};

/// Memory of a device. Others may be changing it, so that every access is volatile.
class Mapping {
public:
	/// All of a buffer, where its largest pages fit.
	Mapping(const Fd &fd, std::size_t size, std::uint64_t phys_class, unsigned page_shift)
		: size_(size)
	{
		const std::size_t page = std::size_t{1} << page_shift;
		room_size_ = size + page;
		void *room = mmap(nullptr, room_size_, PROT_NONE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (room == MAP_FAILED)
			fail("mmap");
		room_ = static_cast<char *>(room);
		start_ = room_ + ((phys_class - reinterpret_cast<std::uintptr_t>(room_)) & (page - 1));
		if (mmap(start_, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd.get(), 0) == MAP_FAILED) {
			const int error = errno;
			munmap(room_, room_size_);
			errno = error;
			fail("mmap");
		}
	}
	Mapping(const Mapping &) = delete;
	Mapping &operator=(const Mapping &) = delete;
	~Mapping() { munmap(room_, room_size_); }

	std::uint64_t word(std::size_t offset) const
	{
		if (offset % 8 || offset >= size_)
			throw std::out_of_range("no word of the buffer");
		return *reinterpret_cast<const volatile std::uint64_t *>(start_ + offset);
	}

private:
	std::size_t size_, room_size_;
	char *room_, *start_;
};

std::uint64_t number(const std::uint8_t *at, int bytes)
{
	std::uint64_t value = 0;
	while (bytes--)
		value = value << 8 | at[bytes];
	return value;
}

Fd dial(const std::string &path)
{
	sockaddr_un address = {};
	address.sun_family = AF_UNIX;
	if (path.size() >= sizeof(address.sun_path))
		throw std::invalid_argument("the path is too long");
	std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
	Fd sock(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
	if (!sock || connect(sock.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)))
		fail(path);
	return sock;
}

constexpr std::size_t header_size = 56;
constexpr std::size_t max_fds = 253;

/// The header of a message, and the descriptors that came with it.
std::pair<std::array<std::uint8_t, header_size>, std::vector<Fd>> receive(const Fd &sock)
{
	std::array<std::uint8_t, header_size> header;
	alignas(cmsghdr) std::array<char, CMSG_SPACE(max_fds * sizeof(int))> control;
	iovec iov = { header.data(), header.size() };
	msghdr message = {};
	message.msg_iov = &iov;
	message.msg_iovlen = 1;
	message.msg_control = control.data();
	message.msg_controllen = control.size();
	const auto got = recvmsg(sock.get(), &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
	if (got < 0)
		fail("recvmsg");

	std::vector<Fd> fds;
	for (cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (std::size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len; at += sizeof(int)) {
			int fd;
			std::memcpy(&fd, reinterpret_cast<char *>(c) + at, sizeof(fd));
			fds.emplace_back(fd);
		}
	}
	if (got != static_cast<ssize_t>(header.size()) || message.msg_flags & MSG_CTRUNC)
		throw std::runtime_error("no whole message came");
	if (std::memcmp(header.data(), "bBuf", 4) || number(header.data() + 4, 2) != 1)
		throw std::runtime_error("the message is of another kind");
	if (fds.size() != (number(header.data() + 12, 4) & 2 ? 2u : 1u))
		throw std::runtime_error("another number of file descriptors than it says");
	return { header, std::move(fds) };
}

void run(const std::string &path)
{
	const auto [header, fds] = receive(dial(path));
	const auto size = lseek(fds[0].get(), 0, SEEK_END);
	if (size < 0)
		fail("lseek");

	// What it is, and how to map it. Without the module it is any mappable file.
	barbuf_query query = {};
	query.size = sizeof(query);
	query.fd = fds[0].get();
	query.out_page_shift = BARBUF_PAGE_SHIFT_4K;
	std::string name = "not one of barbuf's";
	const Fd control(open("/dev/barbuf/control", O_RDWR | O_CLOEXEC));
	if (control && ioctl(control.get(), BARBUF_QUERY, &query) == 0)
		name = reinterpret_cast<const char *>(query.out_name);

	const auto offset = number(header.data() + 16, 8);
	const Mapping map(fds[0], size, query.out_phys_class, query.out_page_shift);
	std::printf("%s: %lld bytes, word at %llu: %016llx, %s eventfd\n", name.c_str(),
		    static_cast<long long>(size), static_cast<unsigned long long>(offset),
		    static_cast<unsigned long long>(map.word(offset)), fds.size() == 2 ? "an" : "no");
}

} // namespace

int main(int argc, char **argv)
{
	if (argc != 2) {
		std::fprintf(stderr, "usage: %s SOCKET\n", argv[0]);
		return 2;
	}
	try {
		run(argv[1]);
	} catch (const std::exception &error) {
		std::fprintf(stderr, "receive: %s\n", error.what());
		return 1;
	}
	return 0;
}
