/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints. A buffer is named by its id, the st_ino of its dma-buf; no
 * physical address is traced.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM barbuf

#if !defined(BARBUF_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define BARBUF_TRACE_H

#include <linux/tracepoint.h>

/* A buffer came into being: @size in bytes, modes as in uapi/linux/barbuf.h. */
TRACE_EVENT(barbuf_export,
	TP_PROTO(u64 id, u32 region, u64 size, u32 backing, u32 cache),
	TP_ARGS(id, region, size, backing, cache),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, size)
		__field(u32, region)
		__field(u32, backing)
		__field(u32, cache)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->size = size;
		__entry->region = region;
		__entry->backing = backing;
		__entry->cache = cache;
	),
	TP_printk("buffer=%llu region=%u size=%llu backing=%s cache=%s",
		  __entry->id, __entry->region, __entry->size,
		  __print_symbolic(__entry->backing, { 0, "pfn" },
				   { 1, "page" }),
		  __print_symbolic(__entry->cache, { 0, "uc" }, { 1, "wc" }))
);

/* A buffer changed its state. */
TRACE_EVENT(barbuf_state,
	TP_PROTO(u64 id, u32 state, u64 generation),
	TP_ARGS(id, state, generation),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, generation)
		__field(u32, state)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->generation = generation;
		__entry->state = state;
	),
	TP_printk("buffer=%llu state=%s generation=%llu", __entry->id,
		  __print_symbolic(__entry->state, { 0, "live" },
				   { 1, "suspended" }, { 2, "revoked" }),
		  __entry->generation)
);

/* A fault was served: @leaves entries of 1 << @shift bytes around @offset. */
TRACE_EVENT(barbuf_fault,
	TP_PROTO(u64 id, u64 offset, u32 shift, u32 leaves, u32 result),
	TP_ARGS(id, offset, shift, leaves, result),
	TP_STRUCT__entry(
		__field(u64, id)
		__field(u64, offset)
		__field(u32, shift)
		__field(u32, leaves)
		__field(u32, result)
	),
	TP_fast_assign(
		__entry->id = id;
		__entry->offset = offset;
		__entry->shift = shift;
		__entry->leaves = leaves;
		__entry->result = result;
	),
	TP_printk("buffer=%llu offset=%#llx shift=%u leaves=%u result=%#x",
		  __entry->id, __entry->offset, __entry->shift,
		  __entry->leaves, __entry->result)
);

/* The last file descriptor, mapping and attachment of a buffer is gone. */
TRACE_EVENT(barbuf_release,
	TP_PROTO(u64 id),
	TP_ARGS(id),
	TP_STRUCT__entry(
		__field(u64, id)
	),
	TP_fast_assign(
		__entry->id = id;
	),
	TP_printk("buffer=%llu", __entry->id)
);

#endif /* BARBUF_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
