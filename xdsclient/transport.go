package xdsclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strings"
	"time"

	corev3pb "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3pb "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/structpb"
)

// Transport is how a control plane (or certificate authority) is reached.
type Transport struct {
	// TLS protects the connection; nil is plaintext, for Unix sockets and
	// loopback.
	TLS *TLS
	// TokenFile holds a bearer token; it is read for every call. It is refused
	// without TLS, except over a Unix socket.
	TokenFile string
	// Metadata is sent with every call, for example clusterid. Keys are lower
	// case.
	Metadata map[string]string
	// KeepaliveTime (30 s, at least 10 s) and KeepaliveTimeout (10 s) detect a
	// peer that has gone without a word.
	KeepaliveTime, KeepaliveTimeout time.Duration
	// ConnectTimeout bounds TCP and TLS together, 10 s.
	ConnectTimeout time.Duration
	// UserAgent prefixes gRPC's own; "" leaves it.
	UserAgent string
}

// TLS is the client side of TLS to a control plane.
type TLS struct {
	// RootsFile holds the trusted CAs in PEM, read for every connection so
	// that a rotated root is picked up. With neither it nor RootsPEM the
	// system's roots are used.
	RootsFile string
	RootsPEM  []byte
	// ServerName is verified instead of the target's host name; "" is the
	// latter.
	ServerName string
	// ClientCertificate, if not nil, is asked for a certificate for each
	// handshake; it may return nil for none.
	ClientCertificate func() *tls.Certificate
	// Config, if not nil, returns the whole configuration for each handshake;
	// of the other fields ServerName is used then, which gRPC takes from here.
	Config func() *tls.Config
}

// Dial returns a connection to target; it connects when first used. The caller
// closes it.
func Dial(target string, t Transport) (*grpc.ClientConn, error) {
	set := func(d, def time.Duration) time.Duration {
		if d <= 0 {
			return def
		}
		return d
	}
	opts := []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: set(t.KeepaliveTime, 30*time.Second), Timeout: set(t.KeepaliveTimeout, 10*time.Second),
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 30 * time.Second},
			MinConnectTimeout: set(t.ConnectTimeout, 10*time.Second),
		}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	}
	if t.UserAgent != "" {
		opts = append(opts, grpc.WithUserAgent(t.UserAgent))
	}
	creds := insecure.NewCredentials()
	if t.TLS != nil {
		creds = &freshTLS{TransportCredentials: credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.TLS.ServerName}), t: *t.TLS}
	}
	opts = append(opts, grpc.WithTransportCredentials(creds))
	if t.TokenFile != "" || len(t.Metadata) > 0 {
		local := strings.HasPrefix(target, "unix:")
		if t.TokenFile != "" && t.TLS == nil && !local {
			return nil, fmt.Errorf("control plane %s: refusing to send the token of %s without TLS", target, t.TokenFile)
		}
		opts = append(opts, grpc.WithPerRPCCredentials(&callCredentials{t: t, secure: t.TLS != nil}))
	}
	return grpc.NewClient(target, opts...)
}

// freshTLS builds the TLS configuration anew for each handshake.
type freshTLS struct {
	credentials.TransportCredentials // Info, ServerHandshake
	t                                TLS
}

func (f *freshTLS) config() (*tls.Config, error) {
	if f.t.Config != nil {
		return f.t.Config(), nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.t.ServerName}
	pem := f.t.RootsPEM
	if f.t.RootsFile != "" {
		b, err := os.ReadFile(f.t.RootsFile)
		if err != nil {
			return nil, fmt.Errorf("trusted root of the control plane: %w (is the istio-ca-root-cert volume mounted?)", err)
		}
		pem = b
	}
	if pem != nil {
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("trusted root of the control plane: no certificate in %q", f.t.RootsFile)
		}
	}
	if get := f.t.ClientCertificate; get != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if c := get(); c != nil {
				return c, nil
			}
			return &tls.Certificate{}, nil
		}
	}
	return cfg, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (f *freshTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := f.config()
	if err != nil {
		_ = raw.Close()
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, raw)
}

// Clone implements credentials.TransportCredentials.
func (f *freshTLS) Clone() credentials.TransportCredentials {
	return &freshTLS{TransportCredentials: f.TransportCredentials.Clone(), t: f.t}
}

type callCredentials struct {
	t      Transport
	secure bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (c *callCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	md := make(map[string]string, len(c.t.Metadata)+1)
	for k, v := range c.t.Metadata {
		md[strings.ToLower(k)] = v
	}
	if c.t.TokenFile != "" {
		b, err := os.ReadFile(c.t.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("token for the control plane: %w (is the istio-token volume mounted?)", err)
		}
		tok := strings.TrimSpace(string(b))
		if tok == "" {
			return nil, fmt.Errorf("token for the control plane: %s is empty", c.t.TokenFile)
		}
		md["authorization"] = "Bearer " + tok
	}
	return md, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (c *callCredentials) RequireTransportSecurity() bool { return c.secure }

// dial opens a connection of its own for one stream, so that every attempt
// resolves the name anew and no second back-off interferes.
func (c *Client) dial(ctx context.Context) (stream, func(), error) {
	conn, err := Dial(c.cfg.Target, c.cfg.Transport)
	if err != nil {
		return nil, nil, err
	}
	closer := func() { _ = conn.Close() }
	timeout := c.cfg.Transport.ConnectTimeout
	if timeout <= 0 {
		timeout = 10 * time.Second
	}
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready && s != connectivity.TransientFailure; s = conn.GetState() {
		if !conn.WaitForStateChange(wait, s) {
			closer()
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			return nil, nil, fmt.Errorf("connecting to %s timed out after %v (is a NetworkPolicy or firewall in the way?)", c.cfg.Target, timeout)
		}
	}
	s, err := c.open(ctx, conn)
	if err != nil {
		closer()
		return nil, nil, err
	}
	if w, ok := s.(*sotw); ok {
		return s, func() { w.close(); closer() }, nil
	}
	return s, closer, nil
}

func (c *Client) open(ctx context.Context, conn grpc.ClientConnInterface) (stream, error) {
	method := c.cfg.Method
	switch {
	case method == "" && c.cfg.StateOfTheWorld:
		method = discoveryv3pb.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName
	case method == "":
		method = discoveryv3pb.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName
	}
	raw, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.StaticMethod())
	if err != nil {
		return nil, err
	}
	if !c.cfg.StateOfTheWorld {
		return &grpc.GenericClientStream[discoveryv3pb.DeltaDiscoveryRequest, discoveryv3pb.DeltaDiscoveryResponse]{ClientStream: raw}, nil
	}
	s := &grpc.GenericClientStream[discoveryv3pb.DiscoveryRequest, discoveryv3pb.DiscoveryResponse]{ClientStream: raw}
	return newSotw(s, func(typeURL string) bool { t := c.byURL[typeURL]; return t != nil && t.Wildcard }, &c.accepted), nil
}

func (n *Node) proto() (*corev3pb.Node, error) {
	md, err := structpb.NewStruct(n.Metadata)
	if err != nil {
		return nil, fmt.Errorf("xds client: node metadata: %w", err)
	}
	p := &corev3pb.Node{
		Id: n.ID, Cluster: n.Cluster, Metadata: md, UserAgentName: n.UserAgent, ClientFeatures: n.ClientFeatures,
		Locality: &corev3pb.Locality{Region: n.Region, Zone: n.Zone, SubZone: n.SubZone},
	}
	if n.UserAgentVersion != "" {
		p.UserAgentVersionType = &corev3pb.Node_UserAgentVersion{UserAgentVersion: n.UserAgentVersion}
	}
	if n.ID == "" {
		return p, errors.New("xds client: the node has no ID")
	}
	return p, nil
}
