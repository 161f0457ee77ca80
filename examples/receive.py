#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Receives a buffer from another process and reads its first word.

usage: receive.py SOCKET

Nothing but the standard library. See receive.c for what it talks to.
"""

import ctypes
import fcntl
import mmap
import os
import socket
import struct
import sys

# From linux/barbuf.h.
BARBUF_QUERY = 0xBB02

u32, u64 = ctypes.c_uint32, ctypes.c_uint64


class Query(ctypes.Structure):
    """struct barbuf_query, as far as it was published first"""
    _fields_ = [
        ("size", u32), ("flags", u32), ("fd", ctypes.c_int32), ("out_state", u32),
        ("out_generation", u64), ("out_size", u64), ("out_cookie", u64),
        ("out_phys_class", u64), ("out_kind", u32), ("out_region", u32),
        ("out_backing", u32), ("out_cache", u32), ("out_page_shift", u32),
        ("out_export_flags", u32), ("out_access", u32), ("out_attachments", u32),
        ("out_faults_4k", u64), ("out_faults_2m", u64), ("out_faults_1g", u64),
        ("out_faults", u64), ("out_mappings", u64), ("out_mapped_bytes", u64),
        ("nr_ranges", u32), ("reserved", u32), ("ranges", u64),
        ("out_name", ctypes.c_char * 32),
    ]


# barbuf::pass::Descriptor: magic, version, header, total, flags, offset, length, modifier,
# fourcc, 0, tag.
HEADER = struct.Struct("<4sHHIIQQQIIQ")
FLAG_EVENT = 2


def receive(sock):
    """The fields of a message, its user bytes and its file descriptors."""
    # Python opens what it receives without CLOEXEC, unless it is told otherwise.
    message, fds, flags, _ = socket.recv_fds(sock, HEADER.size, 253, socket.MSG_CMSG_CLOEXEC)
    try:
        if flags & socket.MSG_CTRUNC:
            raise ValueError("file descriptors were lost")
        message += recv_exactly(sock, HEADER.size - len(message))
        fields = HEADER.unpack(message)
        magic, version, _, total, flags = fields[:5]
        if magic != b"bBuf" or version != 1:
            raise ValueError("the message is of another kind")
        if len(fds) != (2 if flags & FLAG_EVENT else 1):
            raise ValueError("another number of file descriptors than it says")
        return fields, recv_exactly(sock, total - HEADER.size), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def recv_exactly(sock, count):
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ValueError("no whole message came")
        data += part
    return data


def name_of(fd):
    """The provider, if the module is there and the buffer is one of its own."""
    try:
        control = os.open("/dev/barbuf/control", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return "not one of barbuf's"
    try:
        query = Query(size=ctypes.sizeof(Query), fd=fd)
        fcntl.ioctl(control, BARBUF_QUERY, query)
        return query.out_name.decode()
    except OSError:
        return "not one of barbuf's"
    finally:
        os.close(control)


def main(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)
        fields, user, fds = receive(sock)
    size = os.lseek(fds[0], 0, os.SEEK_END)
    offset = fields[5]
    # The mmap module chooses no address, so that the mapping has small pages where it is not
    # aligned by chance. A buffer with page backing has to be mapped at its provider's node.
    with mmap.mmap(fds[0], size, prot=mmap.PROT_READ) as view:
        (word,) = struct.unpack_from("<Q", view, offset)
    print(f"{name_of(fds[0])}: {size} bytes, word at {offset}: {word:016x},",
          "an eventfd" if len(fds) == 2 else "no eventfd")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
