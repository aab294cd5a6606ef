package stats

import (
	"bytes"
	"math"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"time"
)

// clockTicks is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTicks = 100

// RegisterProcess adds metrics of the process and the Go runtime under the
// names that Prometheus clients use. They are read once at each scrape.
func (r *Registry) RegisterProcess() {
	p := &process{started: time.Now()}
	r.mu.Lock()
	r.process = p
	r.mu.Unlock()
	s := r.Scope("")
	for name, f := range map[string]func() float64{
		"process_resident_memory_bytes": func() float64 { return p.rss },
		"process_virtual_memory_bytes":  func() float64 { return p.vsize },
		"process_start_time_seconds":    func() float64 { return p.start },
		"process_open_fds":              func() float64 { return p.fds },
		"process_max_fds":               func() float64 { return p.maxFDs },
		"go_goroutines":                 func() float64 { return float64(runtime.NumGoroutine()) },
		"go_threads":                    func() float64 { return p.threads },
		"go_sched_gomaxprocs_threads":   func() float64 { return float64(runtime.GOMAXPROCS(0)) },
	} {
		s.GaugeFunc(name, f)
	}
	s.CounterFunc("process_cpu_seconds_total", func() float64 { return p.cpu })
	for _, g := range goMetrics {
		s.GaugeFunc(g.name, func() float64 { return p.goValue(g.source) })
		r.Describe(g.name, g.help)
	}
	s.Gauge("go_info", Label{"version", runtime.Version()}).Set(1)
	for name, help := range processHelp {
		r.Describe(name, help)
	}
	r.OnCollect(p.read)
}

// RegisterServer adds what Envoy says about its process, under Envoy's names:
// envoy_server_live and others. draining tells whether the process is about to
// end, connections how many clients it has. It does nothing before
// RegisterProcess.
func (r *Registry) RegisterServer(draining func() bool, connections func() float64) {
	r.mu.Lock()
	p := r.process
	r.mu.Unlock()
	if p == nil {
		return
	}
	s := r.Scope("envoy_server_")
	flag := func(is bool) float64 {
		if is {
			return 1
		}
		return 0
	}
	for name, f := range map[string]func() float64{
		"live":                 func() float64 { return flag(!draining()) },
		"state":                func() float64 { return flag(draining()) }, // 0: live, 1: draining
		"uptime":               func() float64 { return math.Floor(time.Since(p.started).Seconds()) },
		"concurrency":          func() float64 { return float64(runtime.GOMAXPROCS(0)) },
		"total_connections":    connections,
		"memory_allocated":     func() float64 { return p.goValue("/memory/classes/heap/objects:bytes") },
		"memory_heap_size":     func() float64 { return p.goValue("/memory/classes/total:bytes") },
		"memory_physical_size": func() float64 { return p.rss },
	} {
		s.GaugeFunc(name, f)
	}
}

var processHelp = map[string]string{
	"process_cpu_seconds_total":     "Total user and system CPU time spent in seconds.",
	"process_resident_memory_bytes": "Resident memory size in bytes.",
	"process_virtual_memory_bytes":  "Virtual memory size in bytes.",
	"process_start_time_seconds":    "Start time of the process since unix epoch in seconds.",
	"process_open_fds":              "Number of open file descriptors.",
	"process_max_fds":               "Maximum number of open file descriptors.",
	"go_goroutines":                 "Number of goroutines that currently exist.",
	"go_threads":                    "Number of OS threads of the process.",
	"go_sched_gomaxprocs_threads":   "The current GOMAXPROCS setting.",
	"go_info":                       "Information about the Go environment.",
}

var goMetrics = []struct{ name, source, help string }{
	{"go_memstats_heap_objects_bytes", "/memory/classes/heap/objects:bytes", "Bytes of live and not yet swept heap objects."},
	{"go_memstats_sys_bytes", "/memory/classes/total:bytes", "Bytes of memory mapped by the Go runtime."},
	{"go_memstats_heap_released_bytes", "/memory/classes/heap/released:bytes", "Bytes of heap returned to the operating system."},
	{"go_memstats_stack_inuse_bytes", "/memory/classes/heap/stacks:bytes", "Bytes of stacks in use."},
	{"go_gc_gomemlimit_bytes", "/gc/gomemlimit:bytes", "The memory limit of the Go runtime."},
	{"go_gc_cycles", "/gc/cycles/total:gc-cycles", "Garbage collections completed."},
	{"go_gc_heap_allocs_bytes", "/gc/heap/allocs:bytes", "Bytes allocated on the heap since the start."},
}

// process is one reading; a scrape runs its functions one after the other, and
// one scrape runs at a time.
type process struct {
	started time.Time
	samples []metrics.Sample

	cpu, rss, vsize, start, fds, maxFDs, threads float64
}

func (p *process) goValue(source string) float64 {
	for i := range p.samples {
		if p.samples[i].Name == source && p.samples[i].Value.Kind() == metrics.KindUint64 {
			return float64(p.samples[i].Value.Uint64())
		}
	}
	return 0
}

func (p *process) read() {
	if p.samples == nil {
		for _, g := range goMetrics {
			p.samples = append(p.samples, metrics.Sample{Name: g.source})
		}
	}
	metrics.Read(p.samples)
	if b, err := os.ReadFile("/proc/self/stat"); err == nil {
		p.readStat(b)
	}
	if p.start == 0 {
		p.start = float64(p.started.UnixMilli()) / 1000
	}
	if ds, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.fds = float64(len(ds))
	}
	if b, err := os.ReadFile("/proc/self/limits"); err == nil {
		for line := range bytes.SplitSeq(b, []byte("\n")) {
			if rest, ok := bytes.CutPrefix(line, []byte("Max open files")); ok {
				if f := bytes.Fields(rest); len(f) > 0 {
					p.maxFDs = parse(f[0])
				}
			}
		}
	}
}

// readStat reads proc(5) stat: fields are counted after the command, which is
// in parentheses and may hold anything.
func (p *process) readStat(b []byte) {
	i := bytes.LastIndexByte(b, ')')
	f := bytes.Fields(b[i+1:])
	if i < 0 || len(f) < 22 {
		return
	}
	p.cpu = (parse(f[11]) + parse(f[12])) / clockTicks
	p.threads = parse(f[17])
	p.vsize = parse(f[20])
	p.rss = parse(f[21]) * float64(os.Getpagesize())
	if p.start != 0 {
		return
	}
	if boot, err := os.ReadFile("/proc/stat"); err == nil {
		for line := range bytes.SplitSeq(boot, []byte("\n")) {
			if rest, ok := bytes.CutPrefix(line, []byte("btime ")); ok {
				p.start = parse(rest) + parse(f[19])/clockTicks
			}
		}
	}
}

func parse(b []byte) float64 {
	v, err := strconv.ParseFloat(string(b), 64)
	if err != nil || math.IsNaN(v) {
		return 0
	}
	return v
}
