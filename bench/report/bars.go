package report

import "fmt"

// Bar is a limit of a ratio, or of a figure itself.
type Bar struct {
	// Workload is a workload, whose processor time a request counts, or the name
	// of a figure.
	Workload string `json:"workload"`
	// To is the contender that Fairlead is compared with; "" makes Max a limit
	// of the value.
	To string `json:"to,omitempty"`
	// ToWorkload is what is compared with; "" is Workload.
	ToWorkload string  `json:"to_workload,omitempty"`
	Max        float64 `json:"max"`
	// Unit of Max if To is "".
	Unit string `json:"unit,omitempty"`
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

// String is one line.
func (v *Verdict) String() string {
	what, limit := v.Workload, fmt.Sprintf("≤ %g %s", v.Max, v.Unit)
	if v.To != "" {
		limit = fmt.Sprintf("≤ %g × %s", v.Max, v.To)
		if v.ToWorkload != "" {
			limit += " " + v.ToWorkload
		}
	}
	if v.State == notMeasured {
		return fmt.Sprintf("%s %s: %s", what, limit, v.State)
	}
	return fmt.Sprintf("%s %s: %.3g, %s", what, limit, v.Value, v.State)
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
		mine := r.values(b.Workload, Subject)
		ok := len(mine) > 0
		if v.Value = median(mine); b.To != "" {
			against := b.ToWorkload
			if against == "" {
				against = b.Workload
			}
			v.Value, ok = ratio(mine, r.values(against, b.To))
		}
		switch {
		case !ok:
		case v.Value <= b.Max:
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
	HandshakeRate   = "TLS handshakes a second"
	ReadyTime       = "start to ready"
	ReadyRSS        = "RSS when ready"
	Routes1000Time  = "start to ready, 1,000 routes"
	Routes1000RSS   = "RSS when ready, 1,000 routes"
	Routes5000Time  = "start to ready, 5,000 routes"
	Routes5000RSS   = "RSS when ready, 5,000 routes"
	ClustersTime    = "start to ready, 10,000 clusters by ADS"
	ClustersRSS     = "RSS, 10,000 clusters by ADS"
	RoutePush       = "route push to first request"
	RoutePush1000   = "route push to first request, 1,000 routes"
	unitKiB         = "KiB"
	unitMB          = "MB"
	unitSeconds     = "s"
	unitMilliSecond = "ms"
)

// Units of figures.
var Units = map[string]string{
	IdleTunnel: unitKiB, IdleStream: unitKiB, IdleStreamUsed: unitKiB, IdleH1: unitKiB, IdleH1Used: unitKiB,
	Handshake: "µs", HandshakeRate: "1/s",
	ReadyTime: unitSeconds, Routes1000Time: unitSeconds, Routes5000Time: unitSeconds, ClustersTime: unitSeconds,
	ReadyRSS: unitMB, Routes1000RSS: unitMB, Routes5000RSS: unitMB, ClustersRSS: unitMB,
	RoutePush: unitMilliSecond, RoutePush1000: unitMilliSecond,
}

// Bars are what the project aims at, all default features on.
func Bars() []Bar {
	const envoy, haproxy, nginx, naive, floor = "envoy", "haproxy", "nginx", "naive", "floor"
	const tls, paced = "h2tls-h1 closed", "h2tls-h1 paced 5k/s"
	return []Bar{
		{Workload: "hbone-plain closed", To: envoy, Max: 0.42},
		{Workload: "hbone-plain closed", To: floor, Max: 1.45},
		{Workload: "hbone-plain closed", To: haproxy, ToWorkload: tls, Max: 0.8},
		{Workload: "hbone-plain closed", To: nginx, ToWorkload: tls, Max: 0.55},
		{Workload: "hbone-plain closed", To: naive, Max: 0.16},
		{Workload: "hbone-plain paced 5k/s", To: envoy, Max: 0.58},
		{Workload: "hbone-plain paced 5k/s", To: haproxy, ToWorkload: paced, Max: 0.95},
		{Workload: "hbone-hbone closed", To: envoy, Max: 0.28},
		{Workload: "hbone-hbone closed", To: Subject, ToWorkload: "hbone-plain closed", Max: 0.85},
		{Workload: "hbone-hbone paced 5k/s", To: envoy, Max: 0.75},
		{Workload: "h1-h1 closed", To: envoy, Max: 0.55},
		{Workload: "h1-h1 closed", To: haproxy, Max: 0.85},
		{Workload: "h1-h1 closed", To: floor, Max: 1.6},
		{Workload: "grpc unary closed", To: envoy, Max: 0.3},
		{Workload: "grpc unary closed", To: haproxy, Max: 0.6},
		{Workload: "grpc unary closed", To: naive, Max: 0.08},
		{Workload: "hbone-plain 64k closed", To: envoy, Max: 0.7},
		{Workload: "hbone-plain 64k closed", To: floor, Max: 1.15},
		{Workload: "hbone-plain 1m closed", To: envoy, Max: 1},
		{Workload: "hbone-plain 1m closed", To: floor, Max: 1.15},
		{Workload: Handshake, To: envoy, Max: 1.35},
		{Workload: Handshake, To: haproxy, Max: 0.65},
		{Workload: IdleStreamUsed, Max: 2, Unit: unitKiB},
		{Workload: IdleH1Used, Max: 8, Unit: unitKiB},
		{Workload: ReadyRSS, Max: 36, Unit: unitMB},
		{Workload: Routes5000RSS, Max: 60, Unit: unitMB},
		{Workload: ClustersRSS, Max: 220, Unit: unitMB},
		{Workload: ClustersTime, Max: 2.8, Unit: unitSeconds},
	}
}
