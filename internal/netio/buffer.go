package netio

import "sync"

// Buffer size classes. A small one is enough for most heads and messages; a
// large one pays for bulk transfers only.
const (
	SmallBuffer  = 4 << 10
	MediumBuffer = 16 << 10
	LargeBuffer  = 64 << 10
)

var pools = [3]sync.Pool{
	{New: func() any { b := make([]byte, SmallBuffer); return &b }},
	{New: func() any { b := make([]byte, MediumBuffer); return &b }},
	{New: func() any { b := make([]byte, LargeBuffer); return &b }},
}

// GetBuffer returns a pooled buffer of the smallest class that holds n bytes;
// its length is the size of the class. Above LargeBuffer it allocates exactly
// n. The content is undefined. The caller owns it until PutBuffer.
func GetBuffer(n int) *[]byte {
	var p *sync.Pool
	switch {
	case n <= SmallBuffer:
		p = &pools[0]
	case n <= MediumBuffer:
		p = &pools[1]
	case n <= LargeBuffer:
		p = &pools[2]
	default:
		b := make([]byte, n)
		return &b
	}
	return p.Get().(*[]byte) //nolint:errcheck,forcetypeassert // the pools hold nothing else
}

// PutBuffer gives b back. The slice may have been resliced or appended to; it
// is kept if its capacity still is that of a class. nil is ignored. Nobody may
// hold a reference into b afterwards.
func PutBuffer(b *[]byte) {
	if b == nil {
		return
	}
	*b = (*b)[:cap(*b)]
	switch cap(*b) {
	case SmallBuffer:
		pools[0].Put(b)
	case MediumBuffer:
		pools[1].Put(b)
	case LargeBuffer:
		pools[2].Put(b)
	}
}

// GrowBuffer returns a buffer with room for n bytes that starts with the first
// used bytes of b, and gives b back if it had to be replaced. b may be nil.
func GrowBuffer(b *[]byte, used, n int) *[]byte {
	if b != nil && len(*b) >= n {
		return b
	}
	g := GetBuffer(n)
	if b != nil {
		copy(*g, (*b)[:used])
		PutBuffer(b)
	}
	return g
}
