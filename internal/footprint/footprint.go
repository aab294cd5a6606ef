// Package footprint keeps the memory of a process that has started near what
// serving needs.
package footprint

import "runtime/debug"

// Release gives back to the system what only starting needed: garbage of the
// configuration's decoding, and the pages of the program's own code and
// constants, which the kernel maps again (from the page cache, 16 at a time) as
// they are used. It takes a garbage collection; call it once, on a goroutine of
// its own, when the process is ready.
func Release() {
	debug.FreeOSMemory()
	_ = dropProgram() // the process is only larger without it
}
