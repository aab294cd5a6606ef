package istio

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// setDefaults fills in what an API server does by the Gateway API's schema.
func setDefaults(r *gatewayv1.HTTPRoute) {
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		if len(rule.Matches) == 0 {
			rule.Matches = []gatewayv1.HTTPRouteMatch{{}}
		}
		for j := range rule.Matches {
			m := &rule.Matches[j]
			if m.Path == nil {
				m.Path = &gatewayv1.HTTPPathMatch{}
			}
			unset(&m.Path.Type, gatewayv1.PathMatchPathPrefix)
			unset(&m.Path.Value, "/")
			for k := range m.Headers {
				unset(&m.Headers[k].Type, gatewayv1.HeaderMatchExact)
			}
			for k := range m.QueryParams {
				unset(&m.QueryParams[k].Type, gatewayv1.QueryParamMatchExact)
			}
		}
		for j := range rule.BackendRefs {
			unset(&rule.BackendRefs[j].Weight, 1)
		}
	}
}

func unset[T any](p **T, def T) {
	if *p == nil {
		*p = &def
	}
}
