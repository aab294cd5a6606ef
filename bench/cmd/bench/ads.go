package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	clusterv3pb "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3pb "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3pb "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3pb "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3pb "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/fairlead-mesh/fairlead/internal/xdstest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/fairlead-mesh/fairlead/bench/contender"
	"github.com/fairlead-mesh/fairlead/bench/load"
	"github.com/fairlead-mesh/fairlead/bench/report"
)

// How many clusters are loaded, and pushes timed.
const (
	manyClusters = 10000
	pushes       = 10
)

// controlPlane serves one listener, which takes its routes by RDS.
type controlPlane struct {
	*xdstest.Server
	port uint16
}

// ads starts a control plane for listeners on the port given.
func ads(listen int) (*controlPlane, error) {
	s, err := xdstest.Start(xdstest.Options{})
	if err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddrPort(s.Addr())
	if err != nil {
		s.Close()
		return nil, err
	}
	p := &controlPlane{s, addr.Port()}
	router, err := anypb.New(&routerv3pb.Router{})
	if err != nil {
		return nil, err
	}
	hcm, err := anypb.New(&hcmv3pb.HttpConnectionManager{
		StatPrefix:     "bench",
		RouteSpecifier: &hcmv3pb.HttpConnectionManager_Rds{Rds: &hcmv3pb.Rds{ConfigSource: byADS(), RouteConfigName: "routes"}},
		HttpFilters:    []*hcmv3pb.HttpFilter{{Name: "envoy.filters.http.router", ConfigType: &hcmv3pb.HttpFilter_TypedConfig{TypedConfig: router}}},
	})
	if err != nil {
		return nil, err
	}
	err = s.Set(xdstest.Listener, "bench", &listenerv3pb.Listener{
		Name: "bench", Address: socket(listen),
		FilterChains: []*listenerv3pb.FilterChain{{Filters: []*listenerv3pb.Filter{{
			Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3pb.Filter_TypedConfig{TypedConfig: hcm},
		}}}},
	})
	return p, err
}

func byADS() *corev3pb.ConfigSource {
	return &corev3pb.ConfigSource{
		ResourceApiVersion:    corev3pb.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3pb.ConfigSource_Ads{Ads: &corev3pb.AggregatedConfigSource{}},
	}
}

func socket(port int) *corev3pb.Address {
	return &corev3pb.Address{Address: &corev3pb.Address_SocketAddress{SocketAddress: &corev3pb.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &corev3pb.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// setClusters adds n clusters with an endpoint each.
func (p *controlPlane) setClusters(n, port int) error {
	var set []xdstest.Resource
	add := func(typeURL, name string, m proto.Message) error {
		b, err := proto.Marshal(m)
		set = append(set, xdstest.Resource{TypeURL: typeURL, Name: name, Version: "1", Value: b})
		return err
	}
	for i := range n {
		name := service(i)
		if err := errors.Join(add(xdstest.Cluster, name, cluster(name, 5*time.Second)), add(xdstest.Endpoints, name, assignment(name, port, 1))); err != nil {
			return err
		}
	}
	p.Update(set, nil)
	return nil
}

func service(i int) string { return fmt.Sprintf("outbound|9080||service-%d.app.svc.cluster.local", i) }

func cluster(name string, connect time.Duration) *clusterv3pb.Cluster {
	return &clusterv3pb.Cluster{
		Name: name, ClusterDiscoveryType: &clusterv3pb.Cluster_Type{Type: clusterv3pb.Cluster_EDS},
		EdsClusterConfig: &clusterv3pb.Cluster_EdsClusterConfig{EdsConfig: byADS()}, ConnectTimeout: durationpb.New(connect),
	}
}

// assignment has one endpoint.
func assignment(name string, port int, weight uint32) *endpointv3pb.ClusterLoadAssignment {
	return &endpointv3pb.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3pb.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3pb.LbEndpoint{{
			HostIdentifier:      &endpointv3pb.LbEndpoint_Endpoint{Endpoint: &endpointv3pb.Endpoint{Address: socket(port)}},
			LoadBalancingWeight: wrapperspb.UInt32(weight),
		}},
	}}}
}

// setRoutes serves n routes, the last of which answers with body.
func (p *controlPlane) setRoutes(n int, body string) error {
	answer := func(body string) *routev3pb.Route_DirectResponse {
		return &routev3pb.Route_DirectResponse{DirectResponse: &routev3pb.DirectResponseAction{
			Status: 200, Body: &corev3pb.DataSource{Specifier: &corev3pb.DataSource_InlineString{InlineString: body}},
		}}
	}
	prefix := func(s string) *routev3pb.RouteMatch {
		return &routev3pb.RouteMatch{PathSpecifier: &routev3pb.RouteMatch_Prefix{Prefix: s}}
	}
	var routes []*routev3pb.Route
	for i := 1; i < n; i++ {
		routes = append(routes, &routev3pb.Route{Match: prefix(fmt.Sprintf("/svc/%d/", i)), Action: answer("no")})
	}
	routes = append(routes, &routev3pb.Route{Match: prefix("/"), Action: answer(body)})
	return p.Set(xdstest.Route, "routes", &routev3pb.RouteConfiguration{
		Name: "routes", VirtualHosts: []*routev3pb.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: routes}},
	})
}

// clusters measures the start with many clusters from a control plane: until it
// is ready and has answered a request, for which clusters and endpoints must be
// there.
func (b *bench) clusters(ctx context.Context, name string) error {
	return b.withADS(ctx, name, func(p *controlPlane) error {
		return errors.Join(p.setRoutes(1, "x"), p.setClusters(b.sized(manyClusters), b.plain.Port()))
	}, func(_ *controlPlane, c *contender.Contender) error {
		begin := time.Now()
		if err := awaitBody(ctx, c, "x"); err != nil {
			return err
		}
		b.figure(report.ClustersTime, c, 1, (c.StartTime + time.Since(begin)).Seconds())
		rss, err := settled(ctx, c, readyFor)
		b.figure(report.ClustersRSS, c, 1, rss/(1<<20))
		return err
	})
}

// startByADS measures the start with one route from a control plane, until a
// request is answered.
func (b *bench) startByADS(ctx context.Context, name string) error {
	for round := 1; round <= startRounds; round++ {
		err := b.withADS(ctx, name, func(p *controlPlane) error { return p.setRoutes(1, "x") },
			func(_ *controlPlane, c *contender.Contender) error {
				begin := time.Now()
				if err := awaitBody(ctx, c, "x"); err != nil {
					return err
				}
				b.figure(report.ADSTime, c, round, (c.StartTime + time.Since(begin)).Seconds())
				return nil
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// routePushes measures the time from the change of a route until a request is
// answered by it, also while others are answered.
func (b *bench) routePushes(ctx context.Context, name string) error {
	for _, v := range []struct {
		routes int
		load   bool
		figure string
	}{{1, false, report.RoutePush}, {1, true, report.RoutePushLoad}, {1000, false, report.RoutePush1000}} {
		first := version(0)
		err := b.withADS(ctx, name, func(p *controlPlane) error { return p.setRoutes(v.routes, first) },
			func(p *controlPlane, c *contender.Contender) (err error) {
				if err := awaitBody(ctx, c, first); err != nil {
					return err
				}
				if v.load {
					stop, err := pushLoad(ctx, c, len(first))
					if err != nil {
						return err
					}
					defer func() { err = errors.Join(err, stop()) }()
				}
				for round := 1; round <= pushes; round++ {
					begin := time.Now()
					if err := errors.Join(p.setRoutes(v.routes, version(round)), awaitBody(ctx, c, version(round))); err != nil {
						return err
					}
					b.figure(v.figure, c, round, time.Since(begin).Seconds()*1e3)
				}
				return nil
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// version is the body by which a route is known. All are of one length.
func version(n int) string { return fmt.Sprintf("v%03d", n) }

// The load under which routes are pushed: requests a second, and connections.
const pushRate, pushConns = 5000, 64

// pushLoad sends requests until stop is called, which tells what failed.
func pushLoad(ctx context.Context, c *contender.Contender, size int) (stop func() error, err error) {
	addr, err := netip.ParseAddrPort(address(c, contender.H1H1))
	if err != nil {
		return nil, err
	}
	x, err := load.H1(ctx, load.TCP{Address: addr}, pushConns, []byte("GET / HTTP/1.1\r\nhost: "+authority+"\r\n\r\n"), size)
	if err != nil {
		return nil, err
	}
	g := load.New(x, pushRate)
	var over atomic.Bool
	var res load.Result
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !over.Load() && res.Errors == 0 {
			res = g.Run(200 * time.Millisecond)
		}
	}()
	return func() error {
		over.Store(true)
		<-done
		g.Close()
		if res.Errors > 0 {
			return fmt.Errorf("%d errors while routes were pushed, one of them: %s", res.Errors, res.FirstError)
		}
		return nil
	}, nil
}

// withADS starts a control plane, fills it, and starts a contender of it.
func (b *bench) withADS(ctx context.Context, name string, fill func(*controlPlane) error, f func(*controlPlane, *contender.Contender) error) error {
	s := contender.Spec{ADS: true}
	if err := s.Ports.Listen(); err != nil {
		return err
	}
	p, err := ads(s.Ports.H1)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := fill(p); err != nil {
		return err
	}
	s.Ports.ADS = int(p.port)
	return b.fresh(ctx, name, s, func(c *contender.Contender) error { return f(p, c) })
}

// awaitBody asks until the listener answers with body.
func awaitBody(ctx context.Context, c *contender.Contender, body string) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	last := error(nil)
	for ctx.Err() == nil {
		got, err := get(ctx, tr, "http://"+address(c, contender.H1H1)+"/")
		if err == nil && got == body {
			return nil
		}
		if err != nil {
			last = err
			_ = sleep(ctx, 2*time.Millisecond)
		}
	}
	return fmt.Errorf("no answer %q: %w", body, errors.Join(ctx.Err(), last))
}

func get(ctx context.Context, tr *http.Transport, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
