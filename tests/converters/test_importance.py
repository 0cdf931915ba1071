"""Which experts count most, against the weights of all rows and by hand."""

from __future__ import annotations

import torch
from mmengine.config import Config
from small_files import plant_varied
from small_models import batch, detector

from moe_det.converters import importance
from moe_det.routing import RoutingRecorder, find_routers


def test_weights_of_all_images_and_levels_are_summed(monkeypatch, capsys):
    # the layer balances inside levels; importance is over all of them
    torch.manual_seed(0)  # all experts are used
    kl = dict(type='KLConstraint')
    model = detector(dict(num_experts=4, top_k=2, balance_over='level', constraint=kl)).eval()
    plant_varied(model)
    batches = [((0, 1), batch()), ((2,), batch([(96, 64)]))]
    monkeypatch.setattr(importance, 'test_batches', lambda cfg, limit, trained: batches[:limit])
    found = importance.expert_importance(Config({}), model, find_routers(model), None)
    with RoutingRecorder(model) as recorder, torch.no_grad():
        for ids, data in batches:
            recorder.start_batch(ids)
            model.test_step(data)
    text = capsys.readouterr().out
    for layer in ('bbox_head.cls', 'bbox_head.reg'):
        rows = torch.cat([record.weights for record in recorder.records if record.layer == layer])
        assert len(rows) == 3 * 5 and rows.sum(0).min() > 0
        torch.testing.assert_close(found[layer], rows.sum(0))
        shares = ', '.join(f'{e}: {x:.1%}' for e, x in enumerate((rows.sum(0) / len(rows)).tolist()))
        assert f'{layer}: importance by expert {shares}\n' in text


def test_most_important_of_every_slot():
    values = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 0.0])
    assert importance.most_important(values, 1, 2) == [3, 4]
    assert importance.most_important(values, 1, 9) == [0, 1, 2, 3, 4, 5]
    assert importance.most_important(values, 2, 1) == [1, 3]  # a tie goes to the lower number
    assert importance.most_important(values, 2, 2) == [1, 2, 3, 4]
    assert importance.most_important(values, 3, 1) == [1, 3, 4]


def test_shares_of_a_shard_are_those_of_its_copies():
    text = importance._in_words(torch.tensor([3.0, 1.0, 0.0, 4.0]), 2)
    assert text == '0: 75.0%, 1: 25.0% of shard 0; 2: 0.0%, 3: 100.0% of shard 1'
