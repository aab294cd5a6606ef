package demo

import (
	"context"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/internal/identity"
	"github.com/fairlead-mesh/fairlead/proxy"
	"github.com/fairlead-mesh/fairlead/ztunnel"
)

//go:embed config/*.yaml
var configs embed.FS

// Last bytes of the addresses. HBONE's port is fixed, so each part has an
// address of its own in a loopback network that is this run's.
const (
	hostControlPlane = 1
	hostWaypoint     = 2
	hostClient       = 3
	hostStranger     = 4
	hostEgress       = 5
	hostV1           = 11
	hostV2           = 12
	hostBank         = 21
)

const (
	trustDomain = "cluster.local"
	clientID    = "spiffe://cluster.local/ns/app/sa/client"
	startWithin = 30 * time.Second
	drainTime   = 200 * time.Millisecond
)

// mesh is all that runs.
type mesh struct {
	o    *Options
	net  string // "127.x.y."
	vars map[string]string

	ca, bankCA *identity.DevCA
	control    *controlPlane
	v1, v2     *reviews
	bank       *bank

	client, stranger *client

	cancel context.CancelFunc
	wg     sync.WaitGroup
	ended  chan error // a part that ended before it should
	// interrupt is closed when the user does not want to wait any longer.
	interrupt <-chan struct{}
	mu        sync.Mutex
	errs      []error
}

// start brings everything up. After an error nothing runs.
func start(ctx context.Context, o *Options) (m *mesh, err error) {
	m = &mesh{o: o, ended: make(chan error, 16), interrupt: ctx.Done()}
	ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, m.stop())
		}
	}()
	if m.ca, err = identity.NewDevCA(trustDomain); err != nil {
		return m, fmt.Errorf("certificate authority of the mesh: %w", err)
	}
	if m.bankCA, err = identity.NewDevCA("bank.example"); err != nil {
		return m, fmt.Errorf("certificate authority of the external service: %w", err)
	}
	l, err := m.reserve(ctx)
	if err != nil {
		return m, fmt.Errorf("control plane: %w", err)
	}
	m.control = newControlPlane(ctx, l)
	m.wg.Go(m.control.serve)
	m.vars = map[string]string{
		"CONTROL_PLANE": m.ip(hostControlPlane), "WAYPOINT": m.ip(hostWaypoint), "EGRESS": m.ip(hostEgress),
		"CLIENT": m.ip(hostClient), "STRANGER": m.ip(hostStranger), "V1": m.ip(hostV1), "V2": m.ip(hostV2),
		"BANK": m.ip(hostBank), "BANK_CA": base64.StdEncoding.EncodeToString(m.bankCA.RootsPEM()), "LIVE": "reviews-v1",
	}
	if err = m.startApplications(ctx); err != nil {
		return m, err
	}
	for _, z := range []struct {
		ns, name, account, listeners string
	}{
		{"app", "reviews-v1", "reviews", fmt.Sprintf(`{hbone: "%s:15008"}`, m.ip(hostV1))},
		{"app", "reviews-v2", "reviews", fmt.Sprintf(`{hbone: "%s:15008"}`, m.ip(hostV2))},
		{"app", "client", "client", fmt.Sprintf(`{socks5: "%[1]s:15080", connect: "%[1]s:15081"}`, m.ip(hostClient))},
		{"other", "stranger", "stranger", fmt.Sprintf(`{socks5: "%[1]s:15080", connect: "%[1]s:15081"}`, m.ip(hostStranger))},
	} {
		if err = m.startZtunnel(ctx, z.ns, z.name, z.account, z.listeners); err != nil {
			return m, fmt.Errorf("ztunnel of %s: %w", z.name, err)
		}
	}
	for _, p := range []struct {
		name, file, address string
		id                  identity.ID
	}{
		{"waypoint", "waypoint.yaml", m.ip(hostWaypoint), identity.ID{TrustDomain: trustDomain, Namespace: "app", ServiceAccount: "waypoint"}},
		{"egress-gateway", "egress.yaml", m.ip(hostEgress), identity.ID{TrustDomain: trustDomain, Namespace: "egress", ServiceAccount: "egress-gateway"}},
	} {
		s, err := m.snapshot(p.file, nil)
		if err != nil {
			return m, err
		}
		if err = m.control.cache.SetSnapshot(ctx, p.name, s); err != nil {
			return m, fmt.Errorf("control plane: %s: %w", p.name, err)
		}
		if err = m.startProxy(ctx, p.name, p.address, p.id); err != nil {
			return m, fmt.Errorf("%s: %w", p.name, err)
		}
	}
	m.client, m.stranger = newClient(m.ip(hostClient)), newClient(m.ip(hostStranger))
	return m, nil
}

// reserve finds a loopback network that no other run uses: the one who has the
// control plane's address has the network.
func (m *mesh) reserve(ctx context.Context) (net.Listener, error) {
	pid := os.Getpid()
	var lc net.ListenConfig
	var err error
	for i := range 50 {
		m.net = fmt.Sprintf("127.%d.%d.", 200+(pid/250+i)%50, pid%250)
		var l net.Listener
		if l, err = lc.Listen(ctx, "tcp", m.ip(hostControlPlane)+":15010"); err == nil {
			return l, nil
		}
		if errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil, fmt.Errorf("%w (the demo needs all of 127.0.0.0/8, as Linux has it)", err)
		}
	}
	return nil, err
}

func (m *mesh) ip(host int) string { return fmt.Sprintf("%s%d", m.net, host) }

// config returns an embedded file with its variables filled in, those of more
// before those of the mesh.
func (m *mesh) config(file string, more map[string]string) []byte {
	b, err := configs.ReadFile("config/" + file)
	if err != nil {
		panic(err) // it is embedded
	}
	text := string(b)
	if m.o.edit != nil {
		text = m.o.edit(file, text)
	}
	var old []string
	for _, vars := range []map[string]string{more, m.vars} {
		for k, v := range vars {
			old = append(old, "${"+k+"}", v)
		}
		text = strings.NewReplacer(old...).Replace(text)
		old = nil
	}
	return []byte(text)
}

// snapshot reads what a node shall have.
func (m *mesh) snapshot(file string, vars map[string]string) (*cache.Snapshot, error) {
	s, err := m.control.snapshot(m.config(file, vars))
	if err != nil {
		return nil, fmt.Errorf("control plane: demo/config/%s: %w", file, err)
	}
	return s, nil
}

// background runs a part until the mesh stops.
func (m *mesh) background(what string, run func() error) {
	m.wg.Go(func() {
		err := run()
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
			m.mu.Lock()
			m.errs = append(m.errs, err)
			m.mu.Unlock()
		} else {
			err = fmt.Errorf("%s ended", what)
		}
		select {
		case m.ended <- err:
		default:
		}
	})
}

func (m *mesh) startApplications(ctx context.Context) error {
	m.v1, m.v2, m.bank = newReviews("v1"), newReviews("v2"), &bank{}
	crt, err := m.bankCA.Issue(identity.Leaf{DNSNames: []string{"api.bank.example"}})
	if err != nil {
		return fmt.Errorf("certificate of api.bank.example: %w", err)
	}
	if err := m.serve(ctx, "reviews v1", m.ip(hostV1)+":9080", m.v1, nil); err != nil {
		return err
	}
	if err := m.serve(ctx, "reviews v2", m.ip(hostV2)+":9080", m.v2, nil); err != nil {
		return err
	}
	return m.serve(ctx, "api.bank.example", m.ip(hostBank)+":8443", m.bank, crt)
}

func (m *mesh) startZtunnel(ctx context.Context, ns, name, account, listeners string) error {
	cfg, err := ztunnel.Parse(m.config("ztunnel.yaml", map[string]string{"NAMESPACE": ns, "NAME": name, "ACCOUNT": account, "LISTENERS": listeners}))
	if err != nil {
		return err
	}
	src, err := m.ca.Source(identity.ID{TrustDomain: trustDomain, Namespace: ns, ServiceAccount: account})
	if err != nil {
		return err
	}
	cfg.Identity, cfg.Source, cfg.Logger = ztunnel.IdentityConfig{}, src, m.o.Logger.With("part", "ztunnel of "+name)
	z, err := ztunnel.New(cfg)
	if err != nil {
		return err
	}
	m.background("ztunnel of "+name, func() error { return z.Run(ctx) })
	return nil
}

func (m *mesh) startProxy(ctx context.Context, name, address string, id identity.ID) error {
	src, err := m.ca.Source(id)
	if err != nil {
		return err
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	p, err := proxy.FromBootstrap(m.config("bootstrap.yaml", map[string]string{"NODE": name, "ADDRESS": address}), proxy.ProcessOptions{
		Registry: builtin.Registry(), Identity: src, DrainTime: drainTime, Logger: m.o.Logger.With("part", name),
		OnReady: func() { close(ready) },
	})
	if err != nil {
		return err
	}
	m.background(name, func() error {
		err := p.Run(ctx)
		done <- err
		return err
	})
	end := time.NewTimer(startWithin)
	defer end.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	isReady := false
	for {
		refused, complete := m.control.verdict(name)
		switch {
		case refused != nil:
			return refused
		case isReady && complete:
			return nil
		}
		select {
		case <-ready:
			isReady, ready = true, nil
		case <-look.C:
		case err := <-done:
			return err
		case <-m.interrupt:
			return errors.New("interrupted while it started")
		case <-end.C:
			return fmt.Errorf("not ready within %s: %w", startWithin, p.Ready())
		}
	}
}

// stop ends everything and returns what went wrong meanwhile.
func (m *mesh) stop() error {
	for _, c := range []*client{m.client, m.stranger} {
		if c != nil {
			c.close()
		}
	}
	m.cancel()
	if m.control != nil {
		m.control.stop()
	}
	m.wg.Wait()
	return errors.Join(m.errs...)
}
