package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fairlead-mesh/fairlead/filters/builtin"
	"github.com/fairlead-mesh/fairlead/proxy"
)

func cobraFlags(name string) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.Usage = func() {}
	return fs
}

func configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check and show configuration"}
	var addr string
	dump := &cobra.Command{
		Use: "dump", Short: "Print what a running proxy has compiled", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return configDump(cmd, addr) },
	}
	dump.Flags().StringVar(&addr, "admin", "127.0.0.1:15000", "admin address of the proxy, or unix:PATH")
	c.AddCommand(dump, &cobra.Command{
		Use: "validate FILE", Short: "Check a bootstrap file and list every problem", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return configValidate(cmd, args[0]) },
	})
	return c
}

// configValidate decodes a bootstrap; problems are printed by main, fields
// without effect here.
func configValidate(cmd *cobra.Command, file string) error {
	doc, err := proxy.ReadFile(file)
	if err != nil {
		return err
	}
	cfg, notes, err := proxy.Validate(doc, proxy.ProcessOptions{Registry: builtin.Registry()})
	if err != nil {
		return inFile(file, err)
	}
	n := 0
	note := func(where, path, reason string) {
		n++
		cmd.Printf("ignored: %s: %s: %s\n", where, path, reason)
	}
	for _, ig := range cfg.Ignored {
		note("bootstrap", ig.Path, ig.Reason)
	}
	for _, l := range cfg.Listeners {
		for _, ig := range l.Ignored {
			note("listener "+l.Name, ig.Path, ig.Reason)
		}
	}
	for _, c := range cfg.Clusters {
		for _, ig := range c.Ignored {
			note("cluster "+c.Name, ig.Path, ig.Reason)
		}
	}
	for _, d := range notes {
		cmd.Println(d.String())
	}
	cmd.Printf("%s: ok: %d listeners, %d clusters, %d ignored fields\n", file, len(cfg.Listeners), len(cfg.Clusters), n)
	return nil
}

func configDump(cmd *cobra.Command, addr string) error {
	c := &http.Client{Timeout: 10 * time.Second}
	host := strings.TrimPrefix(addr, "http://")
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		host = "localhost"
		c.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(path, "//"))
		}}
	}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, "http://"+host+"/config_dump?include_eds", nil)
	if err != nil {
		return fmt.Errorf("config dump: %w", err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return fmt.Errorf("config dump: %w (is the proxy running, and is %s its admin address?)", err, addr)
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(cmd.OutOrStdout(), resp.Body)
	return err
}
