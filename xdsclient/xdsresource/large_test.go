package xdsresource_test

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/fairlead-mesh/fairlead/xdsclient/xdsresource"
)

// processor is the time that f, which starts no goroutine, has a processor: others
// may need it as well.
func processor(t *testing.T, f func()) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	used := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(1, &r); err != nil { // RUSAGE_THREAD
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := used()
	f()
	return used() - before
}

// in fails unless f is done in five seconds, which is far more than it needs.
func in(t *testing.T, f func()) {
	t.Helper()
	if d := processor(t, f); d > 5*time.Second {
		t.Errorf("it took %v", d)
	} else {
		t.Logf("it took %v", d.Round(time.Millisecond))
	}
}

// scale is what sizes are divided by: under the race detector everything takes ten
// times as long.
func scale() int {
	if raced {
		return 10
	}
	return 1
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAHundredThousandEndpointsInOneCluster(t *testing.T) {
	n := 100_000 / scale()
	l := &endpointv3pb.LocalityLbEndpoints{}
	for i := range n {
		l.LbEndpoints = append(l.LbEndpoints, &endpointv3pb.LbEndpoint{HostIdentifier: &endpointv3pb.LbEndpoint_Endpoint{Endpoint: &endpointv3pb.Endpoint{
			Address: &corev3pb.Address{Address: &corev3pb.Address_SocketAddress{SocketAddress: &corev3pb.SocketAddress{
				Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), PortSpecifier: &corev3pb.SocketAddress_PortValue{PortValue: 80},
			}}},
		}}})
	}
	b := marshal(t, &endpointv3pb.ClusterLoadAssignment{ClusterName: "c", Endpoints: []*endpointv3pb.LocalityLbEndpoints{l}})
	in(t, func() {
		a, err := newDecoder().ClusterLoadAssignment(b)
		if err != nil {
			t.Fatal(err)
		}
		if es := a.Localities[0].Endpoints; len(es) != n || es[n-1].Address.String() != fmt.Sprintf("10.%d.%d.%d:80", (n-1)>>16, (n-1)>>8&255, (n-1)&255) {
			t.Errorf("%d endpoints, the last is %v", len(es), es[len(es)-1].Address)
		}
	})
}

func TestFiftyThousandVirtualHostsInOneRouteConfiguration(t *testing.T) {
	n := 50_000 / scale()
	rc := &routev3pb.RouteConfiguration{Name: "r"}
	for i := range n {
		rc.VirtualHosts = append(rc.VirtualHosts, &routev3pb.VirtualHost{Name: strconv.Itoa(i), Domains: []string{fmt.Sprintf("host-%d.example", i)}, Routes: []*routev3pb.Route{{
			Match:  &routev3pb.RouteMatch{PathSpecifier: &routev3pb.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3pb.Route_Route{Route: &routev3pb.RouteAction{ClusterSpecifier: &routev3pb.RouteAction_Cluster{Cluster: "c"}}},
		}}})
	}
	b := marshal(t, rc)
	in(t, func() {
		got, err := newDecoder().RouteConfiguration(b)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.VirtualHosts) != n {
			t.Errorf("%d virtual hosts", len(got.VirtualHosts))
		}
	})
}

func TestARegularExpressionOfAMegabyteIsRefused(t *testing.T) {
	for name, re := range map[string]string{
		"alternatives": strings.Repeat("abcdefg|", 128<<10) + "x",
		"repetitions":  strings.Repeat("a?", 512<<10),
		"brackets":     strings.Repeat("(", 512<<10) + strings.Repeat(")", 512<<10),
	} {
		t.Run(name, func(t *testing.T) {
			in(t, func() {
				wantError(t, xdsresource.RouteType, fmt.Sprintf(routeDoc, `{match: {safe_regex: {regex: "`+re+`"}}, route: {cluster: c}}`), "virtual_hosts[0].routes[0].match.safe_regex")
			})
		})
	}
}
