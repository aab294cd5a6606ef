package report

import (
	"fmt"
	"strings"
)

// Bar is a limit of a ratio, or of a figure itself.
type Bar struct {
	// Workload is a workload, whose processor time a request counts, or the name
	// of a figure.
	Workload string `json:"workload"`
	// Of is the contender that the bar is about; "" is Subject.
	Of string `json:"of,omitempty"`
	// P99 compares the 99th percentile of latency instead.
	P99 bool `json:"p99,omitempty"`
	// To is the contender that it is compared with; "" makes Max a limit of the
	// value.
	To string `json:"to,omitempty"`
	// ToWorkload is what is compared with; "" is Workload.
	ToWorkload string  `json:"to_workload,omitempty"`
	Max        float64 `json:"max"`
	// Min, if not 0, is a lower limit, in the place of Max.
	Min float64 `json:"min,omitempty"`
	// Unit of Max or Min if To is "".
	Unit string `json:"unit,omitempty"`
}

// what names the thing that is measured.
func (b *Bar) what() string {
	s := b.Workload
	if b.P99 {
		s += " p99"
	}
	if b.Of != "" {
		s = b.Of + " " + s
	}
	return s
}

// Subject is the contender that bars are about.
const Subject = "fairlead"

// Verdict is a bar and what was measured.
type Verdict struct {
	Bar
	Value float64 `json:"value"`
	// State is "met", "missed" or "not measured".
	State string `json:"state"`
}

// limit is "≤ 0.4 × envoy (h1-h1 closed)" or "≥ 1.6 cores".
func (b *Bar) limit() string {
	sign, limit := "≤", b.Max
	if b.Min > 0 {
		sign, limit = "≥", b.Min
	}
	if b.To == "" {
		return strings.TrimSpace(fmt.Sprintf("%s %g %s", sign, limit, b.Unit))
	}
	s := fmt.Sprintf("%s %g × %s", sign, limit, b.To)
	if b.ToWorkload != "" {
		s += " (" + b.ToWorkload + ")"
	}
	return s
}

// String is one line.
func (v *Verdict) String() string {
	if v.State == notMeasured {
		return fmt.Sprintf("%s %s: %s", v.what(), v.limit(), v.State)
	}
	return fmt.Sprintf("%s %s: %.3g, %s", v.what(), v.limit(), v.Value, v.State)
}

const (
	met         = "met"
	missed      = "missed"
	notMeasured = "not measured"
)

// Judge compares what was measured with bars.
func (r *Report) Judge(bars []Bar) []Verdict {
	var out []Verdict
	for _, b := range bars {
		v := Verdict{Bar: b, State: notMeasured}
		of := b.Of
		if of == "" {
			of = Subject
		}
		values := r.values
		if b.P99 {
			values = r.p99s
		}
		mine := values(b.Workload, of)
		ok := len(mine) > 0
		if v.Value = median(mine); b.To != "" {
			against := b.ToWorkload
			if against == "" {
				against = b.Workload
			}
			v.Value, ok = ratio(mine, values(against, b.To))
		}
		switch {
		case !ok:
		case b.Min > 0 && v.Value >= b.Min, b.Min == 0 && v.Value <= b.Max:
			v.State = met
		default:
			v.State = missed
		}
		out = append(out, v)
	}
	return out
}

// Names of figures.
const (
	IdleTunnel      = "idle tunnel"
	IdleStream      = "idle CONNECT stream"
	IdleStreamUsed  = "idle CONNECT stream after a request"
	IdleH1          = "idle h1 connection"
	IdleH1Used      = "idle h1 connection after a request"
	Handshake       = "TLS handshake, CPU"
	HandshakeNew    = "TLS handshake of a client never seen before, CPU"
	HandshakeHybrid = "TLS handshake by X25519MLKEM768, CPU"
	HandshakeRate   = "TLS handshakes a second"
	ReadyTime       = "start to ready"
	ReadyRSS        = "RSS when ready"
	Routes1000Time  = "start to ready, 1,000 routes"
	Routes1000RSS   = "RSS when ready, 1,000 routes"
	Routes5000Time  = "start to ready, 5,000 routes"
	Routes5000RSS   = "RSS when ready, 5,000 routes"
	ClustersTime    = "start to ready, 10,000 clusters by ADS"
	ClustersRSS     = "RSS, 10,000 clusters by ADS"
	ADSTime         = "start to ready, 1 route by ADS"
	Cores           = "cores in use, 1 tunnel × 100 streams, regular expressions"
	AllocsHBONE     = "allocations a request, hbone-plain closed"
	AllocsH1        = "allocations a request, h1-h1 closed"
	Collections     = "collections of garbage in 10 s at 20k/s"
	Stopped         = "stopped by collections in 10 s at 20k/s"
	RoutePush       = "route push to first request"
	RoutePushLoad   = "route push to first request, at 5k/s"
	RoutePush1000   = "route push to first request, 1,000 routes"
	// 9,000 of them, in percent of a processor.
	IdleCPU = "processor time of 9,000 idle tunnels"
	// Among 10,000 clusters, at 5,000 requests a second; see bench.churn.
	ChurnP99        = "p99 while clusters and endpoints change, ÷ without"
	ChurnQuiet      = "p99 without changes among 10,000 clusters"
	ChurnCPU        = "processor time of a change among 10,000 clusters"
	ChurnDelta      = "p99 of the time until a change is acknowledged"
	unitKiB         = "KiB"
	unitMB          = "MB"
	unitSeconds     = "s"
	unitMilliSecond = "ms"
)

// Units of figures.
var Units = map[string]string{
	IdleTunnel: unitKiB, IdleStream: unitKiB, IdleStreamUsed: unitKiB, IdleH1: unitKiB, IdleH1Used: unitKiB,
	Handshake: "µs", HandshakeNew: "µs", HandshakeHybrid: "µs", HandshakeRate: "1/s",
	ReadyTime: unitSeconds, Routes1000Time: unitSeconds, Routes5000Time: unitSeconds, ClustersTime: unitSeconds,
	ReadyRSS: unitMB, Routes1000RSS: unitMB, Routes5000RSS: unitMB, ClustersRSS: unitMB,
	ADSTime: unitSeconds, Cores: "cores", AllocsHBONE: "objects", AllocsH1: "objects",
	Collections: "", Stopped: "µs", IdleCPU: "%", ChurnP99: "×", ChurnDelta: unitMilliSecond, ChurnQuiet: unitMilliSecond, ChurnCPU: unitMilliSecond,
	RoutePush: unitMilliSecond, RoutePushLoad: unitMilliSecond, RoutePush1000: unitMilliSecond,
}

// Bars are what the project aims at, all default features on.
func Bars() []Bar {
	const envoy, haproxy, nginx, naive, floor, ztunnel = "envoy", "haproxy", "nginx", "naive", "floor", "ztunnel"
	const plain, plainPaced = "hbone-plain closed", "hbone-plain paced 5k/s"
	return []Bar{
		{Workload: plain, To: envoy, Max: 0.42},
		{Workload: plain, To: floor, Max: 1.45},
		{Workload: plain, To: haproxy, ToWorkload: "h2tls-h1 closed", Max: 1.05},
		{Workload: plain, To: naive, Max: 0.32},
		{Workload: plainPaced, To: envoy, Max: 0.58},
		{Workload: plainPaced, To: haproxy, ToWorkload: "h2tls-h1 paced 5k/s", Max: 0.95},
		{Workload: "hbone-hbone closed", To: envoy, Max: 0.28},
		{Workload: "hbone-hbone closed", To: Subject, ToWorkload: plain, Max: 0.85},
		{Workload: "hbone-hbone paced 5k/s", To: envoy, Max: 0.75},
		{Workload: "h1-h1 closed", To: envoy, Max: 0.55},
		{Workload: "h1-h1 closed", To: haproxy, Max: 1},
		{Workload: "h1-h1 closed", To: nginx, Max: 1},
		{Workload: "grpc unary closed", To: envoy, Max: 0.3},
		{Workload: "grpc unary closed", To: haproxy, Max: 0.5},
		{Workload: "hbone-plain 64k closed", To: envoy, Max: 0.7},
		{Workload: "hbone-plain 1m closed", To: envoy, Max: 1},
		{Workload: plain, Of: ztunnel, To: floor, Max: 1.2},
		{Workload: plainPaced, Of: ztunnel, To: Subject, Max: 1},
		{Workload: "hbone-plain 1m closed", Of: ztunnel, To: haproxy, ToWorkload: "h2tls-h1 1m closed", Max: 0.75},
		{Workload: "hbone-plain paced 10k/s", P99: true, To: envoy, Max: 1},
		{Workload: "hbone-hbone paced 10k/s", P99: true, To: envoy, Max: 1},
		{Workload: "h1-h1 paced 10k/s", P99: true, To: envoy, Max: 1},
		{Workload: Handshake, To: envoy, Max: 1.35},
		{Workload: Handshake, To: haproxy, Max: 0.45},
		{Workload: Cores, Min: 1.6, Unit: "cores"},
		{Workload: AllocsHBONE, Max: 0.5, Unit: "objects"},
		{Workload: AllocsH1, Max: 0.5, Unit: "objects"},
		{Workload: Stopped, Max: 1000, Unit: "µs"}, // 0.01 %: not to be seen
		{Workload: IdleStreamUsed, Max: 2, Unit: unitKiB},
		{Workload: IdleH1Used, Max: 8, Unit: unitKiB},
		{Workload: IdleTunnel, Max: 43.9, Unit: unitKiB}, // 45 KB
		{Workload: ReadyRSS, Max: 36, Unit: unitMB},
		{Workload: Routes5000RSS, Max: 60, Unit: unitMB},
		{Workload: ClustersRSS, Max: 220, Unit: unitMB},
		{Workload: ClustersTime, Max: 2.8, Unit: unitSeconds},
		{Workload: ReadyTime, Max: 0.1, Unit: unitSeconds},
		{Workload: ADSTime, Max: 0.1, Unit: unitSeconds},
		{Workload: RoutePush, Max: 5, Unit: unitMilliSecond},
	}
}
