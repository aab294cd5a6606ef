package istiometrics

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/fairlead-mesh/fairlead/filters"
	"github.com/fairlead-mesh/fairlead/filters/internal/grpccount"
	"github.com/fairlead-mesh/fairlead/internal/message"
	"github.com/fairlead-mesh/fairlead/internal/stats"
	"github.com/fairlead-mesh/fairlead/internal/streaminfo"
)

var update = flag.Bool("update", false, "write testdata/exposition.txtar from what is exposed")

// expositions is the number of cases in testdata/exposition.txtar.
const expositions = 21

const waypointConfig = `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true}`

// exposed is one request or connection and what is done to its record first.
type exposed struct {
	name, config string // config: waypointConfig if empty
	direction    string // inbound if empty
	tcp          bool
	change       func(s *filters.Stream)
	// grpcStatus is of the answer's header.
	grpcStatus string
}

// outcome returns a change that sets how a stream ended.
func outcome(code int, flags streaminfo.ResponseFlag) func(*filters.Stream) {
	return func(s *filters.Stream) { s.Info.ResponseCode, s.Info.Flags = code, flags }
}

// unreached takes away what only a request to upstream has.
func unreached(s *filters.Stream) {
	s.Info.FilterState.Set("upstream_peer", nil, streaminfo.SharingNone)
	s.Info.Upstream.Address = netip.AddrPort{}
}

func changes(fs ...func(*filters.Stream)) func(*filters.Stream) {
	return func(s *filters.Stream) {
		for _, f := range fs {
			f(s)
		}
	}
}

func grpc(s *filters.Stream) {
	s.Info.IsGRPC = true
	c := &grpccount.Counts{}
	c.Request.Store(2)
	c.Response.Store(3)
	s.Info.FilterState.Set(grpccount.Key, c, streaminfo.SharingNone)
}

func setPeer(p *streaminfo.Peer, principal, local string) func(*filters.Stream) {
	return func(s *filters.Stream) {
		fs := &s.Info.FilterState
		if p == nil {
			fs.Set("downstream_peer", nil, streaminfo.SharingNone)
		} else {
			fs.Set("downstream_peer", p, streaminfo.SharingNone)
		}
		fs.Set("io.istio.peer_principal", streaminfo.String(principal), streaminfo.SharingNone)
		fs.Set("io.istio.local_principal", streaminfo.String(local), streaminfo.SharingNone)
	}
}

func noCluster(s *filters.Stream) { s.Info.Upstream = streaminfo.Upstream{} }

var exposedCases = []exposed{
	{name: "HTTP, answered", change: outcome(200, 0)},
	{name: "HTTP, denied: the route's service, no workload", change: changes(unreached, outcome(403, 0))},
	{name: "HTTP, no route", change: changes(unreached, noCluster, outcome(404, streaminfo.NoRouteFound))},
	{name: "HTTP, timeout", change: outcome(504, streaminfo.UpstreamRequestTimeout)},
	{name: "HTTP, reset after retries", change: outcome(503, streaminfo.UpstreamConnectionTermination|streaminfo.UpstreamRetryLimitExceeded)},
	{name: "HTTP, the client left", change: outcome(0, streaminfo.DownstreamConnectionTermination)},
	{name: "gRPC, answered", change: changes(grpc, outcome(200, 0)), grpcStatus: "0"},
	{name: "gRPC, denied", change: changes(grpc, unreached, outcome(200, 0)), grpcStatus: "7"},
	{name: "gRPC, timeout without a status", change: changes(grpc, outcome(200, streaminfo.UpstreamRequestTimeout))},
	{name: "TCP, served", tcp: true, change: outcome(0, 0)},
	{name: "TCP, denied", tcp: true, change: changes(unreached, noCluster, outcome(0, 0))},
	{name: "TCP, connection refused", tcp: true, change: outcome(0, streaminfo.UpstreamConnectionFailure|streaminfo.UpstreamRetryLimitExceeded)},
	{name: "a source that WDS doesn't know: its namespace is in its identity", change: setPeer(nil, clientID, waypointID)},
	{name: "a source in plaintext: no principals, no mutual TLS", change: setPeer(client, "", "")},
	{name: "a workload without a revision is latest as a source", change: setPeer(&streaminfo.Peer{Workload: "w", Namespace: "n", CanonicalName: "c"}, clientID, waypointID)},
	{
		name:   "tags changed, added and removed, metrics dropped",
		config: `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true,"metrics":[{"name":"request_bytes","drop":true},{"name":"request_duration_milliseconds","drop":true},{"name":"requests_total","dimensions":{"request_host":"request.host","destination_version":"'fixed'","absent":"request.headers['x-absent']"},"tagsToRemove":["source_cluster","response_flags"]},{"tagsToRemove":["source_app"],"dimensions":{"everywhere":"request.method"}}]}`,
	},
	{name: "every metric dropped", config: `{"reporter":"SERVER_GATEWAY","metrics":[{"name":"requests_total","drop":true},{"name":"request_duration_milliseconds","drop":true},{"name":"request_bytes","drop":true},{"name":"response_bytes","drop":true}]}`},
	{name: "the host stands in for a service where it may", config: `{"reporter":"SERVER_GATEWAY"}`, change: noCluster},
	{name: "an ingress gateway reports as source", config: `{"disableHostHeaderFallback":true}`, direction: "outbound", change: outcome(200, 0)},
	{name: "an inbound proxy reports as destination", config: `{"disableHostHeaderFallback":true}`, change: outcome(200, 0)},
	{name: "passed through", config: `{"disableHostHeaderFallback":true}`, direction: "outbound", change: func(s *filters.Stream) {
		s.Info.Upstream, s.Info.RouteName = streaminfo.Upstream{ClusterRaw: "PassthroughCluster"}, "allow_any"
	}},
}

// expose returns the exposition after e, without the buckets of histograms.
func expose(t *testing.T, e *exposed) string {
	t.Helper()
	config, direction := e.config, e.direction
	if config == "" {
		config = waypointConfig
	}
	if direction == "" {
		direction = "inbound"
	}
	ms, reg := compile(t, config, direction)
	s := stream()
	if e.change != nil {
		e.change(s)
	}
	if e.tcp {
		s.Info.WireBytesReceived, s.Info.WireBytesSent = 0, 0
		c := ms.NewConnection()
		s.Info.BytesReceived, s.Info.BytesSent = 40, 70
		c.Report(&s.Info, false)
		s.Info.BytesSent = 90
		c.Report(&s.Info, true)
	} else {
		r := s.NewResponse()
		r.Header.Add(message.Status, strconv.Itoa(s.Info.ResponseCode))
		if e.grpcStatus != "" {
			r.Header.Add("grpc-status", e.grpcStatus)
		}
		ms.Request(s, r, nil)
	}
	var b strings.Builder
	for line := range strings.Lines(dump(t, reg)) {
		if strings.Contains(line, "istio_") && !strings.Contains(line, "_bucket{") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// The golden text is what istio_stats.cc of Istio's proxy exposes for the same
// records: names, labels, their order and their values.
func TestTheExpositionIsIstios(t *testing.T) {
	file := filepath.Join("testdata", "exposition.txtar")
	if len(exposedCases) != expositions {
		t.Fatalf("%d cases, want %d", len(exposedCases), expositions)
	}
	if *update {
		ar := &txtar.Archive{}
		for i := range exposedCases {
			ar.Files = append(ar.Files, txtar.File{Name: exposedCases[i].name, Data: []byte(expose(t, &exposedCases[i]))})
		}
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(ar.Files) != expositions {
		t.Fatalf("%d golden texts, want %d", len(ar.Files), expositions)
	}
	for i := range exposedCases {
		e, want := &exposedCases[i], ar.Files[i]
		t.Run(e.name, func(t *testing.T) {
			if want.Name != e.name {
				t.Fatalf("the golden text is of %q", want.Name)
			}
			if got := expose(t, e); got != string(want.Data) {
				t.Errorf("got\n%s\nwant\n%s", got, want.Data)
			}
		})
	}
}

// What a client sends must not decide how much memory metrics take.
func TestLabelsThatClientsChooseAreBounded(t *testing.T) {
	const limit, requests = 100, 5_000
	for name, config := range map[string]string{
		"the host as service": `{"reporter":"SERVER_GATEWAY"}`,
		"the host as tag":     `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true,"metrics":[{"name":"requests_total","dimensions":{"request_host":"request.host"}}]}`,
		"a header as tag":     `{"reporter":"SERVER_GATEWAY","disableHostHeaderFallback":true,"metrics":[{"dimensions":{"user":"request.headers['x-user']"}}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Decode(filters.Any{TypeURL: TypeURL, JSON: true, Value: []byte(config)}, &filters.Decoding{})
			if err != nil {
				t.Fatal(err)
			}
			reg := &stats.Registry{MaxSeries: limit, MaxFamilySeries: limit}
			ms := New(&filters.Env{Stats: reg.Scope(""), Direction: "inbound"}, c)
			ms.requests.Max = limit
			for i := range requests {
				s := stream()
				s.Info.Upstream = streaminfo.Upstream{}
				s.Request.Set(message.Authority, fmt.Sprintf("h%d.example", i))
				s.Request.Set("x-user", strconv.Itoa(i))
				s.Info.End = s.Info.Start.Add(time.Millisecond)
				ms.Request(s, s.NewResponse(), nil)
			}
			series, sum, over := map[string]int{}, 0, false
			for line := range strings.Lines(dump(t, reg)) {
				family, _, ok := strings.Cut(line, "{")
				if !ok || strings.HasSuffix(family, "_bucket") {
					continue
				}
				series[family]++
				if family == "istio_requests_total" {
					v, err := strconv.Atoi(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]))
					if err != nil {
						t.Fatal(err)
					}
					sum += v
					over = over || strings.Contains(line, `reporter="overflow"`)
				}
			}
			for family, n := range series {
				if n > limit+1 {
					t.Errorf("%s has %d series, want at most %d", family, n, limit+1)
				}
			}
			if sum != requests || !over || series["istio_requests_total"] != limit+1 {
				t.Errorf("%d requests in %d series, overflow %v, want all %d in %d", sum, series["istio_requests_total"], over, requests, limit+1)
			}
		})
	}
}
